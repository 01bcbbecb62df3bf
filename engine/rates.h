/* What the card gives at most, measured now: the figures that any result on it is a share of. */
#ifndef ENG_RATES_H
#define ENG_RATES_H

#include "base/err.h"

#include <stdint.h>

/* Each rate is the median of five runs after one that does not count. */
struct rates {
    char device[64];
    int64_t memory;                    /* bytes, all of it */
    double copy_gbps;                  /* its memory to its memory: bytes read plus bytes written */
    double h2d_gbps, d2h_gbps; /* pinned memory, one direction at a time */
    double gemm_tflops;                /* cuBLASLt, bf16, 4096 x 4096 x 4096 random numbers, its fastest algorithm */
};

/* Measured in a child process, so before this one uses the card; it stays free to fork. KM_EDEVICE: no card, or a build without CUDA. */
int rates_measure(struct rates *out, struct km_err *err);

#endif

/* Measured limits of a device: the rates that a result on this device can be compared with.
 *
 * A backend measures them (`measure` in engine/backend.h). Each rate is the median of five runs after one warm-up
 * run. */
#ifndef ENG_RATES_H
#define ENG_RATES_H

#include <stdint.h>

struct rates {
    char device[64];
    int64_t memory;      /* total device memory in bytes */
    double copy_gbps;    /* device memory to device memory, GB/s of bytes read plus bytes written */
    double h2d_gbps;     /* pinned memory to the device, GB/s, with no copy in the other direction */
    double d2h_gbps;     /* the device to pinned memory, GB/s, with no copy in the other direction */
    double gemm_tflops;  /* bf16 GEMM, 4096 x 4096 x 4096, random data, cuBLASLt's fastest algorithm, TFLOP/s */
};

#endif

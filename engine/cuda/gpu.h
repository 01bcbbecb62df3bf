/* The GPU that the engine runs on: CUDA device 0, its name, generation and memory.
 *
 * A process that has initialised CUDA cannot fork a process that uses CUDA. cu_gpu_query therefore asks in a child
 * process; cu_gpu_get asks in this process, and is for the backend, which uses CUDA anyway. */
#ifndef CU_GPU_H
#define CU_GPU_H

#include "engine/cuda/cu.h"

extern "C" {
#include "engine/rates.h"
}

struct cu_gpu {
    char name[64];
    int arch, n_sms;     /* as in cu_dims */
    size_t total, avail; /* bytes of GPU memory: all of it, and what can still be allocated */
};

/* KM_EDEVICE: there is no GPU that the engine can use; the message says why. cu_gpu_get sets avail to 0, because asking
 * for the free memory would create a CUDA context. */
int cu_gpu_get(struct cu_gpu *out, struct km_err *err);
int cu_gpu_query(struct cu_gpu *out, struct km_err *err);

/* The backend's `probe` and `measure` (engine/backend.h). Both use the GPU in a child process. */
int cu_probe(struct km_err *err);
int cu_measure(struct rates *out, struct km_err *err);

#endif

/* Sampling on the GPU. It samples the same ids as the reference sampler (engine/sample.h). */
#ifndef CU_SAMPLE_H
#define CU_SAMPLE_H

#include "engine/cuda/step/arrays.h"

size_t cu_sample_workspace(int max_rows); /* bytes; the caller zeroes the workspace once */
/* Samples one id for each row of logits[S][V]. The ids are stored twice: in ids[S] on the device, for the next step,
 * and in ids_host[S] in pinned memory. An id of -1 means that the reference sampler must sample the row. max_rows: as
 * in the call of cu_sample_workspace. */
void cu_sample(const float *logits, int S, int V, const cu_step_arrays &in, int max_rows, void *workspace, int32_t *ids,
               int32_t *ids_host, cudaStream_t s);

#endif

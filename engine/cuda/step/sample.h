/* Sampling on the device. The ids are those that the reference sampler (engine/sample.h) gives. */
#ifndef CU_SAMPLE_H
#define CU_SAMPLE_H

#include "engine/cuda/step/arrays.h"

size_t cu_sample_workspace(int rows); /* bytes, zeroed once by the caller */
/* Samples rows [S] of logits [S][V]. Each id goes to ids[S] on the device, for the next step, and to ids_host[S] in
 * pinned memory. An id of -1 means that the reference sampler must sample the row. max_rows: what the workspace was
 * sized for. */
void cu_sample(const float *logits, int S, int V, const cu_step_arrays &in, int max_rows, void *workspace, int32_t *ids,
               int32_t *ids_host, cudaStream_t s);

#endif

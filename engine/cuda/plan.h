/* Makes the dimensions of the CUDA backend from options and model, and the memory plan (engine/plan.h) from the
 * dimensions. */
#ifndef CU_PLAN_H
#define CU_PLAN_H

#include "engine/cuda/gpu.h"

/* KM_EINVAL for a model or an option that no kernel supports. */
int cu_dims_make(cu_dims *out, const struct be_opts *o, const struct mdl *m, const cu_gpu *gpu, struct km_err *err);
/* The shape of a KV pool of n_pages pages. */
struct kv_geom cu_geom(const cu_dims &d, const struct mdl *m, int n_pages);
/* The backend's `plan` (engine/backend.h). */
int cu_plan(struct plan *out, const struct be_opts *o, const struct mdl *m, struct km_err *err);

#endif

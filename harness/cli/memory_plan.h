/* The output of `kvmark info --plan`: a memory plan as text and as JSON. */
#ifndef MEMORY_PLAN_H
#define MEMORY_PLAN_H

#include "base/json.h"
#include "harness/cli/serve.h"

#include <stdio.h>

/* Tables of buffers and the KV pool. A plan that does not fit gets its tables and the limit only. */
void memory_plan_print(const struct serve_plan *p, const struct serve_opts *o, FILE *to);
/* The same as an object, sizes in bytes. "kv" and "cache" are null if the plan does not fit. */
cJSON *memory_plan_json(const struct serve_plan *p, const struct serve_opts *o);

#endif

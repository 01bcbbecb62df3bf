/* Output of `kvmark info --plan`: a `serve_plan` as text and as JSON. */
#ifndef MEMORY_PLAN_H
#define MEMORY_PLAN_H

#include "base/json.h"
#include "harness/cli/serve.h"

#include <stdio.h>

/* Prints a table of buffers per kind of memory, and the KV pool. Leaves out the KV pool if the plan does not fit. */
void memory_plan_print(const struct serve_plan *p, const struct serve_opts *o, FILE *to);
/* The plan as an object (cJSON_Delete), with sizes in bytes. "kv" and "cache" are null if the plan does not fit. */
cJSON *memory_plan_json(const struct serve_plan *p, const struct serve_opts *o);

#endif

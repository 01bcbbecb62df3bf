/* Output of `kvmark info --plan`: a `serve_plan` as text and as JSON. */
#ifndef MEMORY_PLAN_H
#define MEMORY_PLAN_H

#include "base/json.h"
#include "harness/cli/serve.h"

#include <stdio.h>

/* Prints a table of buffers per kind of memory, the KV pool, and the cache layer. Leaves out what the plan does not
 * have because it does not fit. */
void memory_plan_print(const struct serve_plan *p, const struct serve_opts *o, FILE *to);
/* The plan as an object (cJSON_Delete), with sizes in bytes. "kv" is null if the plan does not fit, and "cache" if the
 * engine alone does not fit. */
cJSON *memory_plan_json(const struct serve_plan *p, const struct serve_opts *o);

#endif

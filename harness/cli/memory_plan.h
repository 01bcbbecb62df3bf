/* A memory plan for people and for programs: the table of `kvmark info --plan`. */
#ifndef MEMORY_PLAN_H
#define MEMORY_PLAN_H

#include "base/json.h"
#include "harness/cli/serve.h"

#include <stdio.h>

/* The table; of a plan that does not fit the rows, their sum and the limit. */
void memory_plan_print(const struct serve_plan *p, const struct serve_opts *o, FILE *to);
/* The same as an object, bytes everywhere; "kv" and "cache" are null where they cannot be told. */
cJSON *memory_plan_json(const struct serve_plan *p, const struct serve_opts *o);

#endif

/* A memory plan for people and for programs: the table of `kvmark info --plan`. */
#ifndef HZ_PLAN_H
#define HZ_PLAN_H

#include "base/json.h"
#include "harness/cli/host.h"

#include <stdio.h>

/* The table; of a plan that does not fit the rows, their sum and the limit. */
void hz_plan_print(const struct host_plan *p, const struct host_opts *o, FILE *to);
/* The same as an object, bytes everywhere; "kv" and "cache" are null where they cannot be told. */
cJSON *hz_plan_json(const struct host_plan *p, const struct host_opts *o);

#endif

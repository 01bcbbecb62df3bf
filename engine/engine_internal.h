/* What the files of the engine share beyond engine.h: checking options, and making a request on one thread and adding it
 * on another. */
#ifndef ENG_ENGINE_INTERNAL_H
#define ENG_ENGINE_INTERNAL_H

#include "engine/engine.h"
#include "engine/seq.h"

/* Checks o against its rows, the model and the cache layer's chunk size (port may be NULL). */
int eng_check_options(const struct eng_opts *o, const struct mdl_config *c, const struct kv_port *port,
                      struct km_err *err);

/* Validates and copies r and gives it its id. Reads only what eng_open settled: any thread may call it. */
int eng_make(struct eng *e, const struct eng_request *r, struct seq **out, struct km_err *err);
/* Queues q, which becomes the engine's. */
void eng_add(struct eng *e, struct seq *q);

#endif

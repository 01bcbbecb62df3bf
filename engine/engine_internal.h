/* What the files of the engine share beyond engine.h: the check of options, and the two halves of eng_submit. For
 * engine/runner.c one thread prepares a request and another one enqueues it. */
#ifndef ENG_ENGINE_INTERNAL_H
#define ENG_ENGINE_INTERNAL_H

#include "engine/engine.h"
#include "engine/seq.h"

/* Checks o against its rows, the model and the cache layer's chunk size (port may be NULL). */
int eng_check_options(const struct eng_opts *o, const struct mdl_config *c, const struct kv_port *port,
                      struct km_err *err);

/* Validates and copies r, and assigns its id. Reads only what is constant after eng_open, so any thread may call it.
 * The caller owns *out. */
int eng_prepare(struct eng *e, const struct eng_request *r, struct seq **out, struct km_err *err);
/* Queues q; the engine owns it from now on. */
void eng_enqueue(struct eng *e, struct seq *q);

#endif

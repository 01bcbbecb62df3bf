/* Functions that the files of the engine share, but callers do not see: the check of options, and the two halves of
 * eng_submit and of eng_stats. engine/runner.c prepares a request on the caller's thread and enqueues it on its own
 * thread. It collects the engine's statistics after every step, and those of the cache layer only when asked. */
#ifndef ENG_ENGINE_INTERNAL_H
#define ENG_ENGINE_INTERNAL_H

#include "engine/engine.h"
#include "engine/seq.h"

/* Checks o against the ranges in the option table, the model and the cache layer's chunk size (port may be NULL). */
int eng_check_options(const struct eng_opts *o, const struct mdl_config *c, const struct kv_port *port,
                      struct km_err *err);

/* Validates and copies r, and assigns its id. Reads only what is constant after eng_open, so any thread may call it.
 * The caller owns *out. */
int eng_prepare(struct eng *e, const struct eng_request *r, struct seq **out, struct km_err *err);
/* Queues q; the engine owns it from now on. */
void eng_enqueue(struct eng *e, struct seq *q);

/* All members of *out but kv. */
void eng_step_stats(const struct eng *e, struct eng_stats *out);
/* The member kv. Any thread may call it. */
void eng_port_stats(const struct eng *e, struct kv_port_stats *out);

#endif

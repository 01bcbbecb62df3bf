/* The two halves of eng_submit, for engine/runner.c: one thread prepares a request and another one enqueues it. */
#ifndef ENG_ENGINE_INTERNAL_H
#define ENG_ENGINE_INTERNAL_H

#include "engine/engine.h"
#include "engine/seq.h"

/* Validates and copies r, and assigns its id. Reads only what is constant after eng_open, so any thread may call it.
 * The caller owns *out. */
int eng_prepare(struct eng *e, const struct eng_request *r, struct seq **out, struct km_err *err);
/* Queues q; the engine owns it from now on. */
void eng_enqueue(struct eng *e, struct seq *q);

#endif

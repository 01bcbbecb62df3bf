/* What engine/runner.c needs beyond engine.h: making a request on one thread and adding it on another. */
#ifndef ENG_ENGINE_INTERNAL_H
#define ENG_ENGINE_INTERNAL_H

#include "engine/engine.h"
#include "engine/seq.h"

/* Validates and copies r and gives it its id. Reads only what eng_open settled: any thread may call it. */
int eng_prepare(struct eng *e, const struct eng_request *r, struct seq **out, struct km_err *err);
/* Queues q, which becomes the engine's. */
void eng_enqueue(struct eng *e, struct seq *q);

#endif

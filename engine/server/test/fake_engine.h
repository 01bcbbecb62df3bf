/* The engine as the server sees it, without a model: a thread that gives every live request one token a step. The
 * output of a request is its own prompt, over and over; a prompt id equal to FAKE_EOS ends it. Prompts that begin with
 * "FAIL" fail after three tokens, with "DEAD" at once. */
#ifndef SRV_FAKE_ENGINE_H
#define SRV_FAKE_ENGINE_H

#include "engine/engine.h"

#include <stdatomic.h>

struct fake {
    atomic_int step_us;    /* time of a step: 200 */
    atomic_int max_live;   /* queue length: 4096 */
    atomic_int paused;     /* no steps */
    atomic_int failed;     /* the device is gone */
    atomic_int live, submitted, cancelled_stop, cancelled_abort, resets, external_resets;
    atomic_int last_seed, last_max_tokens, last_top_k; /* of the last request */
    double temperature;    /* generation_config's; -1: none */
    int max_model_len;
};
extern struct fake fake;
void fake_reset(void);
struct eng *fake_eng(void);

#endif

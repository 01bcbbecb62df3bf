/* A fake of engine/runner.h without a model: a thread that generates one token for every live request in each step.
 *
 * The output of a request is its own prompt, repeated. The id FAKE_EOS in a prompt ends the output. A request whose
 * prompt begins with "FAIL" fails after three tokens, and one whose prompt begins with "DEAD" fails at once. The struct
 * `fake` controls the steps and counts the server's calls; tests read and write it while the server runs. */
#ifndef SRV_FAKE_ENGINE_H
#define SRV_FAKE_ENGINE_H

#include "engine/engine.h"

#include <stdatomic.h>

struct fake {
    /* Set by the test. */
    atomic_int step_us;  /* duration of a step, us; default 200 */
    atomic_int max_live; /* runner_submit refuses further requests; default 4096 */
    atomic_int paused;   /* 1: no steps run */
    atomic_int failed;   /* 1: the device has failed */
    double temperature;  /* of generation_config.json; -1: none */
    int max_model_len;
    /* Counted by the fake. */
    atomic_int live, submitted, cancelled_stop, cancelled_abort, resets, external_resets;
    atomic_int last_seed, last_max_tokens, last_top_k; /* of the last request submitted */
};
extern struct fake fake;
void fake_reset(void);      /* sets the defaults, and the counters to 0 */
struct eng *fake_eng(void); /* the engine to pass to srv_open */

#endif

/* One step of the engine as plain arrays: the only thing a backend sees of the requests.
 *
 * A prefill chunk and a decode are the same thing with different query lengths, so mixed batches need
 * no second path. Every array belongs to the engine and stays as it is until the step was waited for. */
#ifndef ENG_BATCH_H
#define ENG_BATCH_H

#include "engine/sample.h"

#include <stdint.h>

struct batch {
    int n_tokens;               /* T, over all requests of the step */
    const int32_t *tokens;      /* [T]; -(k + 1): what sample k of the step in flight will choose */
    const int32_t *positions;   /* [T], from 0 within the request */
    const int32_t *slots;       /* [T] where K and V of the token go: page * B + offset */

    int n_reqs;
    const int32_t *q_start;     /* [n_reqs + 1], the rows of request r are q_start[r] .. q_start[r+1] */
    const int32_t *kv_len;      /* [n_reqs] tokens to attend to, this step's included */
    const int32_t *table_start; /* [n_reqs + 1], the pages of request r are block_table[table_start[r] .. [r + 1]) */
    const int32_t *block_table; /* page ids, of each request at least as many as kv_len takes */

    int n_samples;              /* rows whose logits are wanted; 0 in the middle of a prefill */
    const struct smp_row *samples; /* [n_samples] */
};

#endif

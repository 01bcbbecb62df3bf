/* One step as plain arrays: the only thing a backend sees of the requests.
 *
 * A prefill chunk and a decode differ only in the number of their rows, so a mixed batch needs no second path. The
 * engine owns every array, and does not change it until the backend's `wait` for the step returns. */
#ifndef ENG_BATCH_H
#define ENG_BATCH_H

#include "engine/sample.h"

#include <stdint.h>

struct batch {
    int n_tokens;             /* T, the rows of all requests in this step */
    const int32_t *tokens;    /* [T] token ids; -(k + 1): the id that the step before this one samples for sample k */
    const int32_t *positions; /* [T] position within the request, from 0 */
    const int32_t *slots;     /* [T] where K and V of the token are written: page * B + offset in the page */

    int n_reqs;
    const int32_t *q_start;     /* [n_reqs + 1]; request r has the rows q_start[r] .. q_start[r + 1] - 1 */
    const int32_t *kv_len;      /* [n_reqs] tokens to attend to, including those of this step */
    const int32_t *table_start; /* [n_reqs + 1]; request r has block_table[table_start[r] .. table_start[r + 1] - 1] */
    const int32_t *block_table; /* page ids; for each request at least as many as kv_len tokens need */

    int n_samples;                 /* rows to sample; 0 if all requests are in the middle of a prefill */
    const struct smp_row *samples; /* [n_samples], by rising row */
};

#endif

/* Counts tokens after the run, where it delays no request. benchmark_serving_multi_turn.py tokenizes between two
 * requests of a client, inside its closed loop. */
#include "harness/run/count.h"

#include "base/mem.h"

#include <string.h>

static int count_text(const struct tok *tok, const char *text, size_t len, int *out, struct km_err *err)
{
    int64_t n = len ? tok_count(tok, text, len, err) : 0;
    if (n < 0)
        return (int)n;
    *out = n > INT32_MAX ? INT32_MAX : (int)n;
    return 0;
}

static int count_message(const struct tok *tok, const struct wl_msg *m, int *out, struct km_err *err)
{
    *out = m->n_tokens;
    return m->n_tokens >= 0 ? 0 : count_text(tok, m->text, m->len, out, err);
}

/* Record i of the warm-up's records followed by those of the measured phase. */
static struct hz_rec *rec_at(struct hz_trace *t, int i)
{
    return i < t->n_warm ? &t->warm[i] : &t->recs[i - t->n_warm];
}

/* Counts the tokens of a request's answer and of its first event. Also stores the former in *answer, for the prompts of
 * later turns. */
static int count_answer(struct hz_rec *r, const struct tok *tok, int *answer, struct km_err *err)
{
    int rc = 0;
    if (!r->ok || !r->text)
        return 0;
    rc = count_text(tok, r->text, r->text_len, &r->local_output_tokens, err);
    if (!rc)
        rc = count_text(tok, r->text, r->first_len, &r->local_first_tokens, err);
    *answer = r->local_output_tokens;
    return rc;
}

int hz_trace_count(struct hz_trace *t, const struct wl_set *set, const struct tok *tok, bool keep_text,
                   struct km_err *err)
{
    int rc = 0;
    size_t turns = 0;
    size_t *at =
        km_calloc((size_t)set->n + 1, sizeof *at); /* at[c]: index of conversation c's turn 0 in the next two */
    for (int c = 0; at && c < set->n; c++) {
        at[c] = turns;
        turns += (size_t)set->convs[c].n / 2;
    }
    int *user = km_calloc(turns, sizeof *user), *answer = km_calloc(turns, sizeof *answer);
    if (!at || !user || !answer)
        rc = km_fail(err, KM_ENOMEM, "no memory for the token counts of %d requests", t->n);
    for (int c = 0; !rc && tok && c < set->n; c++) {
        for (int m = 0; !rc && m < set->convs[c].n; m++)
            rc = count_message(tok, &set->convs[c].msgs[m],
                               m % 2 ? &answer[at[c] + (size_t)m / 2] : &user[at[c] + (size_t)m / 2], err);
    }
    /* Answers come before prompts, which contain them. With a fixed history the prompts have the workload's answers. */
    for (int i = 0; !rc && tok && i < t->n_warm + t->n; i++) {
        struct hz_rec *r = rec_at(t, i);
        int unused;
        rc = count_answer(r, tok, t->fixed_history ? &unused : &answer[at[r->conv] + (size_t)r->turn], err);
    }
    for (int i = 0; !rc && tok && i < t->n; i++) {
        struct hz_rec *r = &t->recs[i];
        const size_t base = at[r->conv];
        int sum = 0;
        for (int turn = 0; turn <= r->turn; turn++)
            sum += user[base + (size_t)turn] + (turn < r->turn ? answer[base + (size_t)turn] : 0);
        r->local_prompt_tokens = sum;
    }
    for (int i = 0; !keep_text && i < t->n_warm + t->n; i++) {
        struct hz_rec *r = rec_at(t, i);
        km_free(r->text);
        r->text = NULL;
    }
    km_free(at);
    km_free(user);
    km_free(answer);
    return rc;
}

/* Printing, asking and comparing. */
#include "engine/cuda/test/judge.h"

#include "engine/test/backend_rig.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

int jdg_failures;

void jdg_report(bool good, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    printf("%-4s ", good ? "ok" : "FAIL");
    vprintf(fmt, ap);
    printf("\n");
    fflush(stdout);
    va_end(ap);
    jdg_failures += !good;
}

void jdg_exit_on_error(int rc, const struct km_err *err)
{
    if (!rc)
        return;
    printf("FAIL %s\n", err->msg);
    exit(1);
}

void jdg_random_tokens(int32_t *t, int n, int vocab, uint32_t seed)
{
    uint32_t x = seed * 2654435761u + 12345;
    for (int i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        t[i] = (int32_t)((x >> 8) % (uint32_t)vocab);
    }
}

double jdg_difference(double a, double b)
{
    return fabs(a - b) / fmax(1, fabs(b));
}

double jdg_largest_difference(const struct smp_result *a, const struct smp_result *b, double *mean2)
{
    double largest = 0, sum = 0;
    int common = 0;
    for (int i = 0; i < 8 && i < a->n_top; i++)
        for (int j = 0; j < b->n_top; j++)
            if (a->top_id[i] == b->top_id[j]) {
                double d = jdg_difference(b->top_logprob[j], a->top_logprob[i]);
                largest = fmax(largest, d);
                sum += d * d;
                common++;
            }
    if (mean2)
        *mean2 = common ? sum / common : 99;
    return common ? largest : 99;
}

bool jdg_is_near_tie(double gap, double top, double tolerance)
{
    return gap <= tolerance * fmax(1, fabs(top));
}

bool jdg_agree(const struct smp_result *a, const struct smp_result *b, double tolerance)
{
    if (a->id == b->id)
        return true;
    for (int i = 0; i < a->n_top; i++)
        if (a->top_id[i] == b->id)
            return jdg_is_near_tie(a->top_logprob[0] - a->top_logprob[i], a->top_logprob[0], tolerance);
    return false;
}

uint64_t jdg_submit(struct eng *e, const int32_t *prompt, int n, int n_out, struct jdg_answer *a)
{
    struct eng_request q = {
        .prompt = prompt, .n_prompt = n, .max_tokens = n_out, .ignore_eos = true, .sampling = rig_greedy(), .user = a};
    struct km_err err;
    uint64_t id;
    *a = (struct jdg_answer){0};
    jdg_exit_on_error(eng_submit(e, &q, &id, &err), &err);
    return id;
}

void jdg_collect(const struct eng_events *v)
{
    for (int i = 0; i < v->n; i++) {
        const struct eng_event *ev = &v->v[i];
        struct jdg_answer *a = ev->user;
        a->n_cached = ev->n_cached;
        a->n_cached_pool = ev->n_cached_pool;
        a->n_preempted = ev->n_preempted;
        if (!ev->has_token || a->n == JDG_MOST)
            continue;
        a->ids[a->n] = ev->token.id;
        a->results[a->n++] = ev->token;
    }
}

struct jdg_answer jdg_ask(struct eng *e, const int32_t *prompt, int n, int n_out)
{
    static struct jdg_answer a;
    struct eng_events v;
    struct km_err err;
    jdg_submit(e, prompt, n, n_out, &a);
    while (!eng_idle(e)) {
        jdg_exit_on_error(eng_step(e, &v, &err), &err);
        jdg_collect(&v);
    }
    return a;
}

bool jdg_same_answer(const struct jdg_answer *a, const struct jdg_answer *b, double tolerance, int *n_equal,
                     double *largest)
{
    int i = 0;
    bool same = a->n == b->n;
    double most = 0;
    while (same && i < a->n) {
        most = fmax(most, jdg_largest_difference(&a->results[i], &b->results[i], NULL));
        same = jdg_agree(&a->results[i], &b->results[i], tolerance);
        if (a->ids[i] != b->ids[i])
            break;
        i++;
    }
    *n_equal = i;
    *largest = fmax(*largest, most);
    return same && most <= 1.5 * tolerance;
}

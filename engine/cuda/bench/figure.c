/* Printing and keeping the rows. */
#include "engine/cuda/bench/figure.h"

#include "base/json.h"
#include "base/sort.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static cJSON *rows; /* array; NULL until the first row */

void fig_exit_on_error(int rc, const struct km_err *err)
{
    if (!rc)
        return;
    fprintf(stderr, "cuda_bench: %s\n", err->msg);
    exit(1);
}

void fig_add(struct figure *f, double v)
{
    if (f->n < FIG_SAMPLES)
        f->v[f->n++] = v;
}

/* The quantile q of the samples, which are sorted; NaN without samples. */
static double quantile(const struct figure *f, double q)
{
    return f->n ? f->v[(int)(q * (f->n - 1) + 0.5)] : NAN;
}

void fig_head(void)
{
    printf("| what | median | 10%% to 90%% | samples | goal | |\n|---|---|---|---|---|---|\n");
}

void fig_row(const char *key, const char *what, struct figure *f, double goal)
{
    km_sort_doubles(f->v, (size_t)f->n);
    printf("| %s | %.3f | %.3f to %.3f | %d | ", what, quantile(f, 0.5), quantile(f, 0.1), quantile(f, 0.9), f->n);
    if (goal > 0)
        printf("%g | %s |\n", goal, quantile(f, 0.5) <= goal ? "met" : "missed");
    else
        printf("| |\n");
    fflush(stdout);
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "key", key);
    cJSON_AddStringToObject(o, "what", what);
    cJSON_AddNumberToObject(o, "median", quantile(f, 0.5));
    cJSON_AddNumberToObject(o, "p10", quantile(f, 0.1));
    cJSON_AddNumberToObject(o, "p90", quantile(f, 0.9));
    cJSON_AddNumberToObject(o, "samples", f->n);
    if (goal > 0)
        cJSON_AddNumberToObject(o, "goal", goal);
    cJSON_AddItemToArray(fig_rows(), o);
}

void fig_value(const char *key, const char *what, double v, double goal)
{
    struct figure f = {.v = {v}, .n = 1};
    fig_row(key, what, &f, goal);
}

cJSON *fig_rows(void)
{
    if (!rows)
        rows = cJSON_CreateArray();
    return rows;
}

void fig_free(void)
{
    cJSON_Delete(rows);
    rows = NULL;
}

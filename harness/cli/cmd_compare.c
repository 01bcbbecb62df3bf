/* kvmark compare: compares two runs, or two sets of paired runs. */
#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/cmd.h"
#include "harness/report/compare.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct compare_cmd {
    enum { MD, CSV, JSON } format;
    struct km_strs limits;
    struct compare_opts compare;
};

static const struct km_option rows[] = {
    {.name = "format",
     .letter = 'f',
     KM_FIELD_CHOICE(struct compare_cmd, format),
     .values = "md|csv|json",
     .fallback = "md",
     .help = "format of the result on stdout"},
    {.name = "fail-if",
     KM_FIELD(struct compare_cmd, limits),
     .arg = "LIMIT",
     .help = "exit with status 3 if the change from A to B is beyond LIMIT, FIGURE>+N% or FIGURE<-N%; may be given "
             "more than once"},
};

static int groups(void *options, struct km_option_group *out)
{
    struct compare_cmd *o = options;
    out[0] = KM_OPTION_GROUP("Output", rows, o);
    out[1] = compare_option_group(&o->compare);
    return 2;
}

static const char *profile_name(const struct compare_cmd *o)
{
    return o->compare.profile == HZ_SEED ? "seed" : "strict";
}

static int print_json(const struct compare_result *c, const struct km_strs *pos, const char *profile,
                      struct km_err *err)
{
    cJSON *v = compare_result_json(c);
    cJSON_AddStringToObject(v, "a", pos->v[0]);
    cJSON_AddStringToObject(v, "b", pos->v[1]);
    cJSON_AddStringToObject(v, "profile", profile);
    char *text = cJSON_Print(v);
    cJSON_Delete(v);
    if (!text)
        return km_fail(err, KM_ENOMEM, "out of memory");
    puts(text);
    cJSON_free(text);
    return 0;
}

static int print_grid(const struct compare_result *c, bool md, const char *profile, struct km_err *err)
{
    struct table_grid g;
    struct km_buf b = {0};
    int rc = compare_result_grid(&g, c, "A", "B", err);
    if (rc)
        return rc;
    if (md)
        table_grid_md(&g, &b);
    else
        table_grid_csv(&g, &b);
    if (md) {
        km_buf_printf(&b, "\nProfile: %s. Ratios are B over A, on the requests that both sides answered.", profile);
        if (c->only_a || c->only_b)
            km_buf_printf(&b, " Left out: %d requests that only A answered, %d that only B answered.", c->only_a,
                          c->only_b);
        km_buf_puts(&b, " Verdicts are corrected over all lines together (Holm, 5%).\n");
        if (c->pairs == 1)
            km_buf_puts(&b, "There is one pair of runs, so no interval covers the differences between runs.\n");
        if (c->unlike)
            km_buf_puts(&b, "The workloads DIFFER: the sides did not send the same requests.\n");
    }
    table_grid_free(&g);
    fputs(km_buf_str(&b), stdout);
    km_buf_free(&b);
    return 0;
}

/* Prints a line for each limit that is missed; CMD_LIMIT if there is one. */
static int check_limits(const struct compare_limit *limits, const struct km_strs *texts, const struct compare_result *c)
{
    int status = CMD_OK;
    for (int i = 0; i < texts->n; i++) {
        double change;
        if (!compare_limit_missed(&limits[i], c, &change))
            continue;
        if (isnan(change))
            km_log(KM_LOG_ERROR, "limit %s missed: the figure was not measured, or on too few requests", texts->v[i]);
        else
            km_log(KM_LOG_ERROR, "limit %s missed: the change is %+.1f%%", texts->v[i], change);
        status = CMD_LIMIT;
    }
    return status;
}

static int compare(const struct compare_cmd *o, const struct km_strs *pos, const struct compare_limit *limits,
                   struct km_err *err, int *status)
{
    struct compare_side a = {0}, b = {0};
    struct compare_result c = {0};
    int rc = compare_side_read(&a, pos->v[0], err);
    if (!rc)
        rc = compare_side_read(&b, pos->v[1], err);
    int pairs = a.n < b.n ? a.n : b.n;
    if (!rc && a.n != b.n && !o->compare.force)
        rc = km_fail(err, KM_EINVAL,
                     "%s has %d runs and %s has %d; give two sides with the same number of runs, or --force to use the "
                     "first %d of each",
                     pos->v[0], a.n, pos->v[1], b.n, pairs);
    if (!rc)
        rc = compare_runs(&c, a.list, b.list, pairs, &o->compare, err);
    if (!rc)
        rc = o->format == JSON ? print_json(&c, pos, profile_name(o), err)
                               : print_grid(&c, o->format == MD, profile_name(o), err);
    if (!rc)
        *status = check_limits(limits, &o->limits, &c);
    compare_result_free(&c);
    compare_side_free(&a);
    compare_side_free(&b);
    return rc;
}

static int run(const struct cmd_call *call)
{
    struct km_err err;
    const struct compare_cmd *o = call->options;
    struct compare_limit *limits = NULL;
    int rc = 0, status = CMD_USAGE;
    if (call->args.n != 2)
        rc = km_fail(&err, KM_EINVAL, "compare takes two runs, A and B, not %d; see kvmark help compare", call->args.n);
    else if (!(limits = km_calloc((size_t)o->limits.n + 1, sizeof *limits)))
        rc = km_fail(&err, KM_ENOMEM, "out of memory");
    for (int i = 0; i < o->limits.n && !rc; i++)
        rc = compare_limit_parse(o->limits.v[i], &limits[i], &err);
    if (!rc)
        rc = compare(o, &call->args, limits, &err, &status);
    if (rc)
        status = cmd_error(&err, cmd_status_of(rc));
    km_free(limits);
    return status;
}

const struct cmd cmd_compare = {
    .name = "compare",
    .usage = "A B [OPTIONS]",
    .summary = "Compare two runs, or two sets of paired runs: change, ratio, 95% confidence interval, verdict",
    .text = "A and B are run folders. Each may also be the stem of a suite's row, such as DIR/cells/TABLE/ROW, which "
            "stands for its repeats ROW-1, ROW-2 and so on, or a folder of run folders. Run k of A and run k of B are "
            "a pair.\n\n"
            "Ratios are B over A. Requests are matched by conversation and turn. The 95% confidence interval is a "
            "percentile bootstrap that resamples pairs, then conversations. With few pairs or few conversations, that "
            "part of the interval is widened to the width of Student's t. A figure with one value per run, such as "
            "throughput, needs two pairs for an interval. A verdict on one pair does not cover differences between "
            "runs. A percentile is compared from this number of requests per run: 6 (p50), 36 (p90), 72 (p95) or 368 "
            "(p99).\n\n"
            "A verdict is better, worse, no detectable difference, or undecided. Undecided means that no change was "
            "detected, but that a change of 5% could have been missed. Verdicts are corrected for the number of "
            "figures (Holm). Runs of different workloads are refused without --force.\n\n"
            "--fail-if 'ttft_ms.mean>+5%' exits with status 3 if mean TTFT rose by more than 5% from A to B, and "
            "--fail-if 'input_tps<-3%' if input throughput fell by more than 3%. The change itself is checked, not its "
            "interval. Figures have the names of run.json's summary.",
    .options_size = sizeof(struct compare_cmd),
    .groups = groups,
    .run = run,
};

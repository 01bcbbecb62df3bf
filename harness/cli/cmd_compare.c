/* kvmark compare: two runs, or two sets of paired runs. */
#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/cmd.h"
#include "harness/report/compare.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct compare_cmd {
    const char *format, *profile, *average;
    struct km_strs limits;
    int64_t draws, seed;
    bool force;
};

enum { MAX_FLAGS = 16 };

static int compare_flags(struct compare_cmd *o, struct km_flag *out, int max)
{
    const struct km_flag table[] = {
        {"format", 'f', KM_STR, &o->format, "md|csv|json", "of the result on stdout (default md)", 0, 0},
        {"profile", 0, KM_STR, &o->profile, "seed|strict", "definitions of the figures (default seed)", 0, 0},
        {"average", 0, KM_STR, &o->average, "mean|median", "over the runs of a side (default mean)", 0, 0},
        {"fail-if", 0, KM_LIST, &o->limits, "LIMIT",
         "exit 3 when missed: FIGURE>+N% or FIGURE<-N%, the change from A to B; may be given again", 0, 0},
        {"force", 0, KM_BOOL, &o->force, NULL, "compare runs of different workloads", 0, 0},
        {"draws", 0, KM_INT, &o->draws, "N", "of the bootstrap (default 10000)", 100, 1e7},
        {"seed", 0, KM_INT, &o->seed, "N", "of the bootstrap (default 1)", 0, 9e15},
    };
    int n = (int)(sizeof table / sizeof *table);
    n = n < max ? n : max;
    memcpy(out, table, (size_t)n * sizeof *out);
    return n;
}

static int flags(struct km_flag *out, int max)
{
    struct compare_cmd o;
    int n = compare_flags(&o, out, max);
    for (int i = 0; i < n; i++)
        out[i].dst = NULL;
    return n;
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
        km_buf_printf(&b, "\nProfile %s. Ratios are B over A on the requests that both answered", profile);
        if (c->only_a || c->only_b)
            km_buf_printf(&b, "; %d requests that only A answered and %d that only B did are left out",
                          c->only_a, c->only_b);
        km_buf_printf(&b, ". Verdicts hold for all lines together (Holm, 5%%).%s\n",
                      c->pairs == 1 ? " One pair: differences between runs are in no interval." : "");
        if (c->unlike)
            km_buf_puts(&b, "The workloads DIFFER: the sides did not send the same requests.\n");
    }
    table_grid_free(&g);
    fputs(km_buf_str(&b), stdout);
    km_buf_free(&b);
    return 0;
}

/* The limits, a line on stderr for each that is missed. */
static int check_limits(const struct compare_limit *limits, const struct km_strs *texts,
                        const struct compare_result *c)
{
    int status = CMD_OK;
    for (int i = 0; i < texts->n; i++) {
        double change;
        if (!compare_limit_missed(&limits[i], c, &change))
            continue;
        if (isnan(change))
            km_log(KM_LOG_ERROR, "limit %s missed: the figure was not measured, or too few requests support it",
                   texts->v[i]);
        else
            km_log(KM_LOG_ERROR, "limit %s missed: the change is %+.1f%%", texts->v[i], change);
        status = CMD_LIMIT;
    }
    return status;
}

static int work(const struct compare_cmd *o, const struct km_strs *pos, const struct compare_limit *limits,
                struct km_err *err, int *status)
{
    struct compare_side a, b = {0};
    struct compare_result c = {0};
    struct compare_opts co = compare_defaults();
    co.profile = strcmp(o->profile, "seed") ? HZ_STRICT : HZ_SEED;
    co.median = !strcmp(o->average, "median");
    co.force = o->force;
    co.draws = (int)o->draws;
    co.seed = (uint64_t)o->seed;
    int rc = compare_side_read(&a, pos->v[0], err);
    if (!rc)
        rc = compare_side_read(&b, pos->v[1], err);
    if (!rc && a.n != b.n && !o->force)
        rc = km_fail(
            err, KM_EINVAL,
            "%s has %d runs and %s has %d; pairs need as many on both sides, or --force to use the first %d",
            pos->v[0], a.n, pos->v[1], b.n, a.n < b.n ? a.n : b.n);
    if (!rc)
        rc = compare_runs(&c, a.list, b.list, a.n < b.n ? a.n : b.n, &co, err);
    if (!rc)
        rc = !strcmp(o->format, "json") ? print_json(&c, pos, o->profile, err)
                                        : print_grid(&c, !strcmp(o->format, "md"), o->profile, err);
    if (!rc)
        *status = check_limits(limits, &o->limits, &c);
    compare_result_free(&c);
    compare_side_free(&a);
    compare_side_free(&b);
    return rc;
}

static int run(int argc, char **argv)
{
    struct compare_cmd o = {.format = "md", .profile = "seed", .average = "mean", .draws = 10000, .seed = 1};
    struct km_flag table[MAX_FLAGS];
    struct km_strs pos = {0};
    struct km_err err = {0};
    struct compare_limit *limits = NULL;
    bool help;
    int n = compare_flags(&o, table, MAX_FLAGS), status = CMD_USAGE;
    int rc = km_args_parse(table, n, argc, argv, &pos, &help, &err);
    if (!rc && pos.n != 2)
        rc = km_fail(&err, KM_EINVAL, "compare takes two runs, A and B, not %d; see kvmark help compare",
                     pos.n);
    if (!rc && !(limits = km_calloc((size_t)o.limits.n + 1, sizeof *limits)))
        rc = km_fail(&err, KM_ENOMEM, "out of memory");
    for (int i = 0; i < o.limits.n && !rc; i++)
        rc = compare_limit_parse(o.limits.v[i], &limits[i], &err);
    if (!rc)
        rc = work(&o, &pos, limits, &err, &status);
    if (rc) {
        km_log(KM_LOG_ERROR, "%s", err.msg);
        status = rc == KM_EIO || rc == KM_ENOMEM ? CMD_FAILED : CMD_USAGE;
    }
    km_free(limits);
    km_free(o.limits.v);
    km_free(pos.v);
    return status;
}

const struct cmd cmd_compare = {
    .name = "compare",
    .usage = "A B [FLAGS]",
    .summary = "Two runs, or two sets of paired runs: change, ratio, 95% interval, verdict",
    .text = "A and B are run folders; or stems such as DIR/cells/TABLE/ROW whose folders ROW-1, ROW-2 ... are\n"
            "the repeats of a suite's row; or folders of run folders. Run k of A and run k of B are a pair.\n"
            "Ratios are B over A. Requests are matched by conversation and turn; the interval resamples\n"
            "pairs, then conversations (10,000 draws, percentiles), each part widened by Student's t when\n"
            "there are few of them. Figures per run need two pairs for an interval; a verdict on one pair\n"
            "knows nothing of what changes from run to run. Percentiles are there only from 6 (p50), 36\n"
            "(p90), 72 (p95) or 368 (p99) requests a run.\n\n"
            "Verdicts: better, worse, no detectable difference, or undecided (the interval is wider than 5%\n"
            "each way), corrected over all figures after Holm. Runs of different workloads are refused unless\n"
            "--force.\n\n"
            "--fail-if 'ttft_ms.mean>+5%' ends with status 3 when mean TTFT rose by more than 5% from A to B,\n"
            "--fail-if 'input_tps<-3%' when input throughput fell by more than 3%. The change itself is\n"
            "checked, not its interval. Figures are named as in run.json's summary.",
    .run = run,
    .flags = flags,
};

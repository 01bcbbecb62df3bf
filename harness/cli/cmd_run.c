/* kvmark run: one measured run, against a server that is there or an engine started beside this process. */
#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/cmd.h"
#include "harness/cli/host.h"
#include "harness/cli/loadflags.h"
#include "harness/cli/progress.h"
#include "harness/client/scrape.h"
#include "harness/run/count.h"
#include "harness/run/runfolder.h"
#include "harness/cli/wlflags.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct run_opts {
    struct host_opts host;
    struct lf_opts load;
    struct wlf_opts workload;
    const char *url, *out, *extra_body, *profile;
    struct km_strs headers;
    double ready_timeout;
    bool quiet;
};

enum { MAX_FLAGS = 96 };

static struct run_opts run_defaults(void)
{
    return (struct run_opts){.host = host_defaults(),
                             .load = lf_defaults(),
                             .workload = wlf_defaults(),
                             .profile = "seed",
                             .ready_timeout = 600};
}

static int run_flags(struct run_opts *o, struct km_flag *out, int max)
{
    const struct km_flag mine[] = {
        {"url", 'u', KM_STR, &o->url, "URL",
         "an OpenAI-compatible server, e.g. http://127.0.0.1:8000 (default: start an engine)", 0, 0},
        {"output", 'o', KM_STR, &o->out, "DIR", "the run folder to write (needed; must not hold a run)", 0, 0},
        {"profile", 0, KM_STR, &o->profile, "seed|strict",
         "definitions of the figures printed; both are stored (default seed)", 0, 0},
        {"header", 0, KM_LIST, &o->headers, "K=V", "extra request header; may be given again", 0, 0},
        {"extra-body", 0, KM_STR, &o->extra_body, "JSON", "object merged into each request", 0, 0},
        {"ready-check-timeout-sec", 0, KM_NUM, &o->ready_timeout, "S", "how long to wait for the server (default 600)",
         0, 1e6},
        {"quiet", 'q', KM_BOOL, &o->quiet, NULL, "no progress lines", 0, 0},
    };
    int n = 0;
    for (size_t i = 0; i < sizeof mine / sizeof *mine && n < max; i++)
        out[n++] = mine[i];
    n += lf_flags(&o->load, out + n, max - n);
    n += wlf_flags(&o->workload, out + n, max - n);
    n += host_flags(&o->host, out + n, max - n);
    return n;
}

static struct run_opts shown;

static int flags(struct km_flag *out, int max)
{
    shown = run_defaults();
    return run_flags(&shown, out, max);
}

/* Every option as it stands, for run.json: a result that cannot be made again is not one. */
static cJSON *options_json(const struct km_flag *f, int n)
{
    cJSON *out = cJSON_CreateObject();
    for (int i = 0; i < n; i++) {
        switch (f[i].type) {
        case KM_BOOL:
            cJSON_AddBoolToObject(out, f[i].name, *(bool *)f[i].dst);
            break;
        case KM_NUM:
            if (isinf(*(double *)f[i].dst))
                cJSON_AddStringToObject(out, f[i].name, "inf");
            else
                cJSON_AddNumberToObject(out, f[i].name, *(double *)f[i].dst);
            break;
        case KM_INT:
        case KM_SIZE:
            cJSON_AddNumberToObject(out, f[i].name, (double)*(int64_t *)f[i].dst);
            break;
        case KM_STR: {
            const char *s = *(const char **)f[i].dst;
            if (s && strcmp(f[i].name, "api-key"))
                cJSON_AddStringToObject(out, f[i].name, s);
            break;
        }
        case KM_LIST: {
            const struct km_strs *l = f[i].dst;
            cJSON_AddNumberToObject(out, f[i].name, l->n); /* headers may hold secrets: their number only */
            break;
        }
        }
    }
    return out;
}

/* argv as a line that a shell reads back; a key's value is not repeated. */
static void quote_command(int argc, char **argv, struct km_buf *out)
{
    km_buf_puts(out, "kvmark run");
    for (int i = 0; i < argc; i++) {
        bool secret = i && !strcmp(argv[i - 1], "--api-key");
        const char *s = secret ? "***" : strncmp(argv[i], "--api-key=", 10) ? argv[i] : "--api-key=***";
        km_buf_putc(out, ' ');
        km_buf_put_shell(out, s);
    }
}

/* The longest prompt of the workload with its answer, as far as the client can count (chat markers left out). */
static int longest_request(const struct wl_set *set, const struct load *l)
{
    int longest = 0;
    for (int c = 0; c < set->n; c++) {
        int sum = 0;
        for (int m = 0; m < set->convs[c].n; m++) {
            const struct wl_msg *msg = &set->convs[c].msgs[m];
            if (msg->n_tokens < 0 || (l->max_turns && m >= l->max_turns))
                break;
            sum += msg->assistant && l->limit_max_tokens > 0 ? (int)l->limit_max_tokens : msg->n_tokens;
            if (msg->assistant && sum > longest)
                longest = sum;
        }
    }
    return longest;
}

/* Refuses a workload that cannot fit before the clock runs: the server's own word on its context. */
static int preflight(const struct target *target, const struct wl_set *set, const struct load *l,
                     struct km_err *err)
{
    struct km_buf body = {0};
    cJSON *v = NULL;
    int rc = 0;
    if (target_get(target, "/v1/models", 10, &body, NULL) == 200 && km_buf_ok(&body) &&
        !km_json_parse(body.data, body.len, &v, NULL)) {
        const cJSON *first = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(v, "data"), 0);
        int64_t context = 0;
        int longest = longest_request(set, l);
        if (!km_json_int(first, "max_model_len", false, 1, 1 << 30, &context, NULL) && context && longest > context)
            rc = km_fail(err, KM_EINVAL,
                         "the longest request of %s needs %d tokens but the server's context is %d; give the pool more "
                         "room or a "
                         "shorter workload",
                         set->name, longest, (int)context);
    }
    cJSON_Delete(v);
    km_buf_free(&body);
    return rc;
}

static void print_stat(struct km_buf *out, const char *name, const struct hz_stat *s)
{
    const double v[] = {s->mean, s->std, s->min, s->p50, s->p90, s->p95, s->p99, s->max};
    km_buf_printf(out, "%-12s %8d", name, s->n);
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
        if (isnan(v[i]))
            km_buf_printf(out, " %11s", "-");
        else
            km_buf_printf(out, " %11.2f", v[i]);
    }
    km_buf_putc(out, '\n');
}

/* True when every good answer came with the server's own count of its prompt. */
static bool server_counts(const struct hz_trace *t)
{
    for (int i = 0; i < t->n; i++)
        if (t->recs[i].ok && t->recs[i].prompt_tokens < 0)
            return false;
    return true;
}

static void print_summary(const struct hz_summary *s, const struct hz_trace *t, const cJSON *metrics, const char *dir)
{
    struct km_buf out = {0};
    km_buf_printf(&out, "requests     %d ok, %d failed, %d left out by early stop, in %.2f s (%s definitions)\n",
                  s->requests_ok, s->requests_failed, t->abandoned, s->duration_s,
                  s->profile == HZ_SEED ? "seed" : "strict");
    km_buf_printf(&out, "throughput   input %.2f tok/s, output %.2f tok/s, total %.2f tok/s, %.3f requests/s\n",
                  s->input_tps, s->output_tps, s->total_tps, s->request_rate);
    km_buf_printf(&out, "prompts      %.0f tokens by %s", s->prompt_tokens,
                  server_counts(t) ? "the server's count" : "our own count, the server gives none");
    if (!isnan(s->cached_tokens))
        km_buf_printf(&out, ", %.0f of them cached (%.1f%%)", s->cached_tokens, 100 * s->hit_rate);
    const cJSON *computed = cJSON_GetObjectItemCaseSensitive(metrics, "kvmark_computed_tokens_total");
    if (computed)
        km_buf_printf(&out, "; %.0f tokens computed by the engine, answers included", computed->valuedouble);
    km_buf_printf(&out, "\n\n%-12s %8s %11s %11s %11s %11s %11s %11s %11s %11s\n", "", "count", "mean", "std", "min",
                  "50%", "90%", "95%", "99%", "max");
    print_stat(&out, "ttft_ms", &s->ttft_ms);
    print_stat(&out, "tpot_ms", &s->tpot_ms);
    print_stat(&out, "itl_ms", &s->itl_ms);
    print_stat(&out, "e2e_ms", &s->e2e_ms);
    km_buf_printf(&out, "\n%s\n", dir);
    fputs(km_buf_str(&out), stdout);
    km_buf_free(&out);
}

/* What one run holds besides its options. */
struct job {
    struct host_facts facts;
    struct target target;
    struct tok *tok;
    struct wl_set *set;
    struct hz_trace trace;
    struct hz_summary seed, strict;
    cJSON *options, *metrics;
    cJSON *engine; /* what our engine says of itself (GET /version); NULL for other servers */
    struct km_buf command, url;
    char started[32];
    pid_t pid; /* of our engine; 0: none */
};

/* What our engine resolved its options to: a result names the pool it ran with, not "auto". */
static cJSON *engine_facts(const struct target *target)
{
    struct km_buf body = {0};
    cJSON *v = NULL;
    if (target_get(target, "/version", 10, &body, NULL) == 200 && km_buf_ok(&body))
        km_json_parse(body.data, body.len, &v, NULL);
    km_buf_free(&body);
    return v;
}

/* The limits the engine ran under, for the "limits" of run.json. */
static cJSON *engine_limits(const cJSON *engine)
{
    static const char *const keys[][2] = {
        {"num_gpu_blocks", "kv_blocks"}, {"block_size", "kv_block_tokens"}, {"max_model_len", "context"}};
    cJSON *out = engine ? cJSON_CreateObject() : NULL;
    for (size_t i = 0; out && i < sizeof keys / sizeof *keys; i++) {
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(engine, keys[i][0]);
        if (cJSON_IsNumber(v))
            cJSON_AddNumberToObject(out, keys[i][1], v->valuedouble);
    }
    return out;
}

static int store(const struct run_opts *o, const struct job *j, struct km_err *err)
{
    struct km_digest exe;
    char exe_hex[65] = "";
    if (!km_sha_file("/proc/self/exe", &exe, NULL))
        km_hex(&exe, exe_hex);
    bool own = !o->url;
    const char *dtype = o->host.dtype;
    km_json_str(j->engine, "dtype", false, &dtype, NULL);
    cJSON *limits = engine_limits(j->engine);
    struct run_info info = {.workload = j->set->name,
                               .workload_sha256 = j->set->sha256,
                               .workload_text = j->set->text,
                               .workload_kind = j->set->kind,
                               .workload_requests = j->set->n_requests,
                               .target_kind = own ? "kvmark" : "external",
                               .target_url = own ? "" : o->url,
                               .device = own ? j->facts.device : "",
                               .model = j->trace.model,
                               .kv = own ? j->facts.kv : "",
                               .dtype = own ? dtype : "",
                               .dummy_weights = own && j->facts.dummy_weights,
                               .command = km_buf_str(&j->command),
                               .commit = KVMARK_COMMIT,
                               .binary_sha256 = exe_hex,
                               .started = j->started,
                               .options = j->options,
                               .server_metrics = j->metrics,
                               .limits = limits,
                               .set = j->set};
    int rc = run_folder_write(o->out, &info, &j->trace, &j->seed, &j->strict, err);
    cJSON_Delete(limits);
    return rc;
}

/* --tokenizer's, or the model's: the folder given, or the one that a server on this machine says it serves from. */
static int open_tokenizer(struct run_opts *o, struct job *j, struct km_err *err)
{
    const char *path = o->host.tokenizer ? o->host.tokenizer : o->host.model;
    int rc = path ? tok_open(&j->tok, path, err) : KM_ENOENT;
    if (rc == KM_ENOENT && o->url && !o->host.tokenizer) {
        struct km_buf root = {0};
        rc = target_wait_ready(&j->target, o->ready_timeout, err);
        if (!rc && !(rc = target_model_root(&j->target, &root, err)))
            rc = tok_open(&j->tok, km_buf_str(&root), err);
        if (!rc)
            km_log(KM_LOG_INFO, "counting with the tokenizer in %s, where the server has its model", km_buf_str(&root));
        km_buf_free(&root);
    }
    return rc != KM_ENOENT ? rc
                           : km_fail(err, KM_EINVAL,
                                     "no tokenizer %s%s; give --tokenizer DIR to make and count the workload's tokens",
                                     path ? "at " : "", path ? path : "is known");
}

/* The measured part, once options are known to be good. */
static int measure(struct run_opts *o, const char *path, struct job *j, struct km_err *err)
{
    j->target = (struct target){.url = o->url,
                                   .model = !o->url                     ? NULL
                                            : o->host.served_model_name ? o->host.served_model_name
                                                                        : o->host.model,
                                   .api_key = o->host.api_key,
                                   .headers = o->headers,
                                   .extra_body = o->extra_body};
    int rc = open_tokenizer(o, j, err);
    o->workload.seed = o->host.seed;
    if (!rc)
        rc = wlf_generate(&o->workload, path, j->tok, &j->set, err);
    int port = 0;
    if (!rc && !o->url && !(rc = host_spawn(&o->host, &j->pid, &port, err))) {
        km_buf_printf(&j->url, "http://127.0.0.1:%d", port);
        j->target.url = km_buf_str(&j->url);
    }
    if (!rc)
        rc = target_wait_ready(&j->target, o->ready_timeout, err);
    if (!rc)
        rc = preflight(&j->target, j->set, &o->load.load, err);
    if (rc)
        return rc;

    if (!o->url)
        j->engine = engine_facts(&j->target);
    km_wall_iso(j->started, sizeof j->started);
    cJSON *before = scrape_metrics(&j->target);
    struct progress bar;
    progress_start(&bar, o->quiet);
    progress_catch_interrupt();
    rc = load_run(&j->target, &o->load.load, j->set, progress_update, &bar, &j->trace, err);
    progress_end(&bar);
    cJSON *after = scrape_metrics(&j->target);
    j->metrics = scrape_difference(before, after);
    cJSON_Delete(before);
    cJSON_Delete(after);
    if (!rc)
        rc = hz_trace_count(&j->trace, j->set, j->tok, false, err);
    if (!rc) {
        hz_summarize(&j->trace, j->set->kind, HZ_SEED, &j->seed);
        hz_summarize(&j->trace, j->set->kind, HZ_STRICT, &j->strict);
    }
    return rc;
}

static int check(struct run_opts *o, const struct km_strs *pos, struct job *j, struct km_err *err)
{
    if (pos->n != 1)
        return km_fail(err, KM_EINVAL, "run takes one workload file, not %d; see kvmark help run", pos->n);
    if (!o->out)
        return km_fail(err, KM_EINVAL, "--output is missing; give the folder to write the run to");
    char *have = km_path(o->out, "run.json");
    bool taken = have && km_file_exists(have);
    km_free(have);
    if (taken)
        return km_fail(err, KM_EINVAL, "%s already holds a run; choose another folder or remove it", o->out);
    int rc = lf_resolve(&o->load, err);
    o->load.load.seed = (uint64_t)o->host.seed;
    return rc || o->url ? rc : host_check(&o->host, &j->facts, err);
}

static int run(int argc, char **argv)
{
    struct run_opts o = run_defaults();
    struct job j = {0};
    struct km_flag table[MAX_FLAGS];
    struct km_strs pos = {0};
    struct km_err err = {0};
    bool help;
    int n = run_flags(&o, table, MAX_FLAGS);
    int rc = km_args_parse(table, n, argc, argv, &pos, &help, &err);
    if (!rc)
        rc = check(&o, &pos, &j, &err);
    int status = rc ? CMD_USAGE : CMD_FAILED;
    if (!rc) {
        j.options = options_json(table, n);
        quote_command(argc, argv, &j.command);
        rc = measure(&o, pos.v[0], &j, &err);
    }
    if (j.pid) {
        struct km_err died;
        if (host_stop(j.pid, &died) && !rc)
            rc = km_fail(&err, died.code, "%s", died.msg);
    }
    if (!rc && !(rc = store(&o, &j, &err))) {
        print_summary(!strcmp(o.profile, "seed") ? &j.seed : &j.strict, &j.trace, j.metrics, o.out);
        status = j.seed.requests_failed || progress_interrupted() ? CMD_FAILED : CMD_OK;
        for (int i = 0, said = 0; i < j.trace.n && said < 3; i++)
            if (!j.trace.recs[i].ok)
                km_log(KM_LOG_WARN, "conversation %d turn %d failed: %s", j.trace.recs[i].conv, j.trace.recs[i].turn,
                       j.trace.recs[i].error),
                    said++;
    }
    if (rc)
        km_log(KM_LOG_ERROR, "%s", err.msg);
    hz_trace_free(&j.trace);
    wl_set_free(j.set);
    tok_free(j.tok);
    cJSON_Delete(j.options);
    cJSON_Delete(j.metrics);
    cJSON_Delete(j.engine);
    km_buf_free(&j.command);
    km_buf_free(&j.url);
    km_free(o.headers.v);
    km_free(pos.v);
    return status;
}

const struct cmd cmd_run = {
    .name = "run",
    .usage = "WORKLOAD.json [--url URL] -o DIR [FLAGS]",
    .summary = "One measured run, against --url or against an engine it starts itself",
    .text = "Without --url every flag of kvmark serve is accepted: the engine runs in a process of its own on a free "
            "port of\n"
            "127.0.0.1 and is measured over HTTP, by the same client that measures any other server.\n\n"
            "With --url, --model names the model to ask for (default: the first that the server lists) and --tokenizer "
            "the folder\n"
            "whose tokenizer makes and counts the workload's tokens (default: where a server on this machine has its "
            "model).\n"
            "Ctrl-C once ends the run and keeps what is complete.",
    .run = run,
    .flags = flags,
};

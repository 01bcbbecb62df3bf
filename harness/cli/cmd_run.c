/* kvmark run: one measured run, against a server that is running or an engine started in a process of its own. */
#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/cmd.h"
#include "harness/cli/figures.h"
#include "harness/cli/generate.h"
#include "harness/cli/progress.h"
#include "harness/cli/serve.h"
#include "harness/client/load.h"
#include "harness/client/scrape.h"
#include "harness/run/count.h"
#include "harness/run/runfolder.h"

#include <stdio.h>
#include <string.h>

struct run_opts {
    struct load_opts load;
    struct wl_gen_opts workload;
    struct serve_opts serve; /* the engine without --url; model, tokenizer, API key and seed also with it */
    struct target target;    /* from the command line: url is NULL without --url; `serve` has model and API key */
    const char *out;
    enum hz_profile profile;
    double ready_timeout;
    bool quiet;
};

static const struct km_option rows[] = {
    {.name = "url",
     .letter = 'u',
     KM_FIELD(struct run_opts, target.url),
     .arg = "URL",
     .help = "an OpenAI-compatible server, for example http://127.0.0.1:8000 (default: start an engine)"},
    {.name = "output",
     .letter = 'o',
     KM_FIELD(struct run_opts, out),
     .arg = "DIR",
     .help = "run folder to write (required); it must not hold a run"},
    {.name = "profile",
     KM_FIELD_CHOICE(struct run_opts, profile),
     .values = "seed|strict",
     .fallback = "seed",
     .help = "definitions of the printed figures: seed as in vLLM's benchmark scripts, strict as kvmark defines them; "
             "run.json has both"},
    {.name = "header",
     KM_FIELD(struct run_opts, target.headers),
     .arg = "K=V",
     .secret = true,
     .help = "an extra header of each request; may be given more than once"},
    {.name = "extra-body",
     KM_FIELD(struct run_opts, target.extra_body),
     .arg = "JSON",
     .help = "a JSON object whose members are added to the body of each request"},
    {.name = "ready-check-timeout-sec",
     KM_FIELD(struct run_opts, ready_timeout),
     .arg = "S",
     .fallback = "600",
     .lo = 0,
     .hi = 1e6,
     .help = "seconds to wait until the server is ready"},
    {.name = "quiet", .letter = 'q', KM_FIELD(struct run_opts, quiet), .help = "print no progress lines"},
};

static int groups(void *options, struct km_option_group *out)
{
    struct run_opts *o = options;
    out[0] = KM_OPTION_GROUP("Run", rows, o);
    out[1] = load_option_group(&o->load);
    out[2] = wl_option_group(&o->workload);
    return 3 + serve_option_groups(&o->serve, out + 3);
}

/* Appends the command as a line that a shell reads back, with *** for the values of secret options. */
static void quote_command(const struct cmd_call *call, struct km_buf *out)
{
    bool is_secret = false; /* the word is the value of a secret option */
    km_buf_puts(out, "kvmark run");
    for (int i = 0; i < call->argc; i++) {
        const char *word = call->argv[i];
        size_t len = strcspn(word, "=");
        void *object;
        const struct km_option *o =
            strncmp(word, "--", 2) ? NULL : km_option_find(call->groups, call->n_groups, word + 2, len - 2, &object);
        bool secret_option = !is_secret && o && o->secret;
        km_buf_putc(out, ' ');
        if (secret_option && word[len])
            km_buf_printf(out, "--%s=***", o->name);
        else
            km_buf_put_shell(out, is_secret ? "***" : word);
        is_secret = secret_option && !word[len];
    }
}

/* The number of tokens of the longest prompt with its answer, without the tokens that the chat template adds. */
static int longest_request(const struct wl_set *set, const struct load_opts *l)
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

/* Refuses a workload with a request that is longer than the context that the server states. */
static int check_context(const struct target *target, const struct wl_set *set, const struct load_opts *l,
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
            rc = km_fail(
                err, KM_EINVAL,
                "the longest request of %s needs %d tokens but the server's context is %d; give the KV pool more "
                "memory, or take a shorter workload",
                set->name, longest, (int)context);
    }
    cJSON_Delete(v);
    km_buf_free(&body);
    return rc;
}

/* What a run opens, starts and measures. free_job frees it, except for the process. */
struct job {
    struct serve_facts facts;
    struct target target;
    struct tok *tok;
    struct wl_set *set;
    struct hz_trace trace;
    struct hz_summary seed, strict;
    cJSON *options, *metrics;
    cJSON *tiers; /* the cache tiers' statistics; NULL: no cache layer, or not our engine */
    cJSON *engine; /* GET /version of the engine that was started; NULL with --url */
    struct km_buf command, url;
    char started[32];
    struct serve_ready ready; /* of the engine that was started */
    pid_t pid;                /* of the engine that was started; 0: none */
};

/* GET /version: the options as the engine resolved them, so that a result states the size of the KV pool and not
 * "auto". NULL if there is no valid answer. */
static cJSON *get_version(const struct target *target)
{
    struct km_buf body = {0};
    cJSON *v = NULL;
    if (target_get(target, "/version", 10, &body, NULL) == 200 && km_buf_ok(&body))
        km_json_parse(body.data, body.len, &v, NULL);
    km_buf_free(&body);
    return v;
}

/* The object "limits" of run.json: sizes that the engine chose for itself. NULL without an engine of our own. */
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
    bool own = !o->target.url;
    const char *dtype = "";
    km_json_str(j->engine, "dtype", false, &dtype, NULL);
    cJSON *limits = engine_limits(j->engine);
    struct run_info info = {.workload = j->set->name,
                            .workload_sha256 = j->set->sha256,
                            .workload_text = j->set->text,
                            .workload_kind = j->set->kind,
                            .workload_requests = j->set->n_requests,
                            .target_kind = own ? "kvmark" : "external",
                            .target_url = own ? "" : o->target.url,
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
                            .cache_tiers = j->tiers,
                            .cache_ready_s = j->ready.cache_wait_s,
                            .cache_complete = j->ready.cache_complete,
                            .limits = limits,
                            .set = j->set};
    int rc = run_folder_write(o->out, &info, &j->trace, &j->seed, &j->strict, err);
    cJSON_Delete(limits);
    return rc;
}

/* Opens the tokenizer that counts tokens: that of --tokenizer, else the one in the folder --model, else the one in the
 * model folder that the server names, which exists if the server runs on this machine. */
static int open_tokenizer(struct run_opts *o, struct job *j, struct km_err *err)
{
    const char *path = o->serve.tokenizer ? o->serve.tokenizer : o->serve.model;
    int rc = path ? tok_open(&j->tok, path, err) : KM_ENOENT;
    if (rc == KM_ENOENT && o->target.url && !o->serve.tokenizer) {
        struct km_buf root = {0};
        rc = target_wait_ready(&j->target, o->ready_timeout, err);
        if (!rc && !(rc = target_model_root(&j->target, &root, err)))
            rc = tok_open(&j->tok, km_buf_str(&root), err);
        if (!rc)
            km_log(KM_LOG_INFO, "counting tokens with the tokenizer in %s, the folder of the server's model",
                   km_buf_str(&root));
        km_buf_free(&root);
    }
    return rc != KM_ENOENT ? rc
                           : km_fail(err, KM_EINVAL,
                                     "no tokenizer %s%s; give --tokenizer DIR to make and count the workload's tokens",
                                     path ? "at " : "", path ? path : "is known");
}

static int start_engine(const struct run_opts *o, struct job *j, struct km_err *err)
{
    int rc = serve_spawn(&o->serve, &j->pid, &j->ready, err);
    if (rc)
        return rc;
    km_buf_printf(&j->url, "http://127.0.0.1:%d", j->ready.port);
    j->target.url = km_buf_str(&j->url);
    if (!j->ready.cache_complete)
        km_log(KM_LOG_WARN,
               "after %d s the cache layer has not taken all its memory yet (%s), so it may store less in this run; "
               "give it less memory",
               SERVE_CACHE_WAIT_S, j->facts.kv);
    else if (j->ready.cache_wait_s > 0.1)
        km_log(KM_LOG_INFO, "the cache layer had its memory after %.1f s (%s)", j->ready.cache_wait_s, j->facts.kv);
    return 0;
}

/* Makes the workload, starts the engine unless there is a --url, runs the load and computes the figures. */
static int measure(struct run_opts *o, const char *path, struct job *j, struct km_err *err)
{
    j->target = o->target;
    j->target.api_key = o->serve.server.api_key;
    if (o->target.url)
        j->target.model = o->serve.server.served_name ? o->serve.server.served_name : o->serve.model;
    int rc = open_tokenizer(o, j, err);
    o->workload.seed = (uint64_t)o->serve.seed;
    if (!rc)
        rc = generate_workload(&j->set, path, &o->workload, j->tok, err);
    if (!rc && !o->target.url)
        rc = start_engine(o, j, err);
    if (!rc)
        rc = target_wait_ready(&j->target, o->ready_timeout, err);
    if (!rc)
        rc = check_context(&j->target, j->set, &o->load, err);
    if (rc)
        return rc;

    if (!o->target.url)
        j->engine = get_version(&j->target);
    km_wall_iso(j->started, sizeof j->started);
    cJSON *tiers_before, *tiers_after;
    cJSON *before = scrape_metrics(&j->target, &tiers_before);
    struct progress bar;
    progress_start(&bar, o->quiet);
    progress_catch_interrupt();
    rc = load_run(&j->target, &o->load, j->set, progress_update, &bar, &j->trace, err);
    progress_end(&bar);
    cJSON *after = scrape_metrics(&j->target, &tiers_after);
    j->metrics = scrape_difference(before, after);
    if (j->pid && strcmp(j->facts.kv, "none"))
        j->tiers = scrape_difference(tiers_before, tiers_after);
    cJSON_Delete(before);
    cJSON_Delete(after);
    cJSON_Delete(tiers_before);
    cJSON_Delete(tiers_after);
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
    if (run_folder_exists(o->out))
        return km_fail(err, KM_EINVAL, "%s already holds a run; choose another folder or remove it", o->out);
    int rc = load_check(&o->load, err);
    o->load.seed = (uint64_t)o->serve.seed;
    return rc || o->target.url ? rc : serve_check(&o->serve, &j->facts, err);
}

static void log_failures(const struct hz_trace *t)
{
    enum { MOST = 3 };
    for (int i = 0, logged = 0; i < t->n && logged < MOST; i++) {
        const struct hz_rec *r = &t->recs[i];
        if (r->ok)
            continue;
        km_log(KM_LOG_WARN, "conversation %d turn %d failed: %s", r->conv, r->turn, r->error);
        logged++;
    }
}

static void free_job(struct job *j)
{
    hz_trace_free(&j->trace);
    wl_set_free(j->set);
    tok_free(j->tok);
    cJSON_Delete(j->options);
    cJSON_Delete(j->metrics);
    cJSON_Delete(j->tiers);
    cJSON_Delete(j->engine);
    km_buf_free(&j->command);
    km_buf_free(&j->url);
}

static int run(const struct cmd_call *call)
{
    struct run_opts *o = call->options;
    struct job j = {0};
    struct km_err err, stopped;
    if (check(o, &call->args, &j, &err))
        return cmd_error(&err, CMD_USAGE);
    j.options = cJSON_CreateObject();
    km_options_json(call->groups, call->n_groups, j.options);
    quote_command(call, &j.command);
    int status, rc = measure(o, call->args.v[0], &j, &err);
    if (j.pid && serve_stop(j.pid, &stopped) && !rc)
        rc = km_fail(&err, stopped.code, "%s", stopped.msg);
    if (!rc)
        rc = store(o, &j, &err);
    if (rc) {
        status = cmd_error(&err, CMD_FAILED);
    } else {
        figures_print(o->profile == HZ_SEED ? &j.seed : &j.strict, &j.trace, j.metrics, o->out);
        log_failures(&j.trace);
        status = j.seed.requests_failed || progress_interrupted() ? CMD_FAILED : CMD_OK;
    }
    free_job(&j);
    return status;
}

const struct cmd cmd_run = {
    .name = "run",
    .usage = "WORKLOAD.json [--url URL] -o DIR [OPTIONS]",
    .summary = "Measure one workload once, against --url or against an engine that is started for it",
    .text =
        "Without --url, kvmark run starts an engine in a process of its own, on a free port of 127.0.0.1. All options "
        "of kvmark serve apply to it. It is measured over HTTP by the same client as any other server. The run begins "
        "when the cache layer has its memory, or after two minutes.\n\n"
        "With --url, --model names the model to ask for (default: the first that the server lists). --tokenizer "
        "names the folder whose tokenizer makes the workload and counts its tokens (default: the folder of the "
        "server's model, if the server runs on this machine).\n\n"
        "Ctrl-C ends the run early. The run folder then has the requests that were complete.",
    .options_size = sizeof(struct run_opts),
    .groups = groups,
    .run = run,
};

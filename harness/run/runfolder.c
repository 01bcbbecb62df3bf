/* Writes and reads a run folder. tracefile.[ch] has the trace's two files, summary.[ch] the summaries of run.json.
 *
 * The order of the keys in run.json is fixed. A value that is not known is null, and the object "reasons" beside it has
 * the reason. */
#include "harness/run/runfolder.h"

#include "base/file.h"
#include "base/mem.h"
#include "harness/run/env.h"
#include "harness/run/tracefile.h"

#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static const char schema[] = "kvmark.run.1", not_recorded[] = "not recorded";
enum { MAX_FILE = 1 << 30 }; /* bytes */

/* Beyond these limits the client's own delays may be a visible part of the figures, and the run is "doubtful". The send
 * lag has a higher limit for two reasons: N prompts that are due at once are sent one after the other, about 30 us
 * each; and of all latencies only the response TTFT includes the lag. */
static const double MAX_SEND_LAG_MS = 50, MAX_LOOP_GAP_MS = 10, MIN_KERNEL_STAMPS = 0.9;

static const struct {
    const char *key;
    size_t at;
    bool integer;
} health_keys[] = {{"cpu_s", offsetof(struct hz_health, cpu_s), false},
                   {"wall_s", offsetof(struct hz_health, wall_s), false},
                   {"send_lag_p99_ms", offsetof(struct hz_health, send_lag_p99_ms), false},
                   {"loop_gap_p99_ms", offsetof(struct hz_health, loop_gap_p99_ms), false},
                   {"loop_gap_max_ms", offsetof(struct hz_health, loop_gap_max_ms), false},
                   {"stamp_lag_p99_ms", offsetof(struct hz_health, stamp_lag_p99_ms), false},
                   {"kernel_stamps", offsetof(struct hz_health, kernel_stamps), false},
                   {"events", offsetof(struct hz_health, events), true},
                   {"reads", offsetof(struct hz_health, reads), true},
                   {"coalesced", offsetof(struct hz_health, coalesced), true},
                   {"reconnects", offsetof(struct hz_health, reconnects), true},
                   {"clock_steps", offsetof(struct hz_health, clock_steps), true}};
enum { N_HEALTH = sizeof health_keys / sizeof *health_keys };

/* The object "reasons" of an object, made if needed. */
static cJSON *reasons_of(cJSON *to)
{
    cJSON *reasons = cJSON_GetObjectItemCaseSensitive(to, "reasons");
    return reasons ? reasons : cJSON_AddObjectToObject(to, "reasons");
}

/* Adds the text; if it is empty, null and the reason. */
static void put_text(cJSON *to, const char *key, const char *text, const char *reason)
{
    if (text && *text) {
        cJSON_AddStringToObject(to, key, text);
        return;
    }
    cJSON_AddNullToObject(to, key);
    cJSON_AddStringToObject(reasons_of(to), key, reason);
}

/* Appends a clause without a full stop, which run.json and reports show. */
__attribute__((format(printf, 2, 3))) static void add_doubt(cJSON *doubts, const char *fmt, ...)
{
    char text[240];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    cJSON_AddItemToArray(doubts, cJSON_CreateString(text));
}

static void put_health(cJSON *to, const struct hz_health *h)
{
    cJSON *reasons = cJSON_CreateObject(), *doubts = cJSON_CreateArray();
    for (int i = 0; i < N_HEALTH; i++) {
        const void *p = (const char *)h + health_keys[i].at;
        double v = health_keys[i].integer ? (double)*(const int64_t *)p : *(const double *)p;
        if (isfinite(v))
            cJSON_AddNumberToObject(to, health_keys[i].key, v);
        else {
            cJSON_AddNullToObject(to, health_keys[i].key);
            cJSON_AddStringToObject(reasons, health_keys[i].key,
                                    h->events ? "no event has a kernel receive timestamp" : "no event was received");
        }
    }
    if (h->send_lag_p99_ms > MAX_SEND_LAG_MS)
        add_doubt(doubts, "requests were sent later than planned: the p99 of the send lag is %.1f ms (limit: %.0f ms)",
                  h->send_lag_p99_ms, MAX_SEND_LAG_MS);
    if (h->loop_gap_p99_ms > MAX_LOOP_GAP_MS)
        add_doubt(doubts, "the client's thread was too slow: the p99 of its loop gap is %.1f ms (limit: %.0f ms)",
                  h->loop_gap_p99_ms, MAX_LOOP_GAP_MS);
    if (h->kernel_stamps < MIN_KERNEL_STAMPS)
        add_doubt(doubts,
                  "only %.0f%% of the events that arrived before the client read them have a kernel timestamp (limit: "
                  "%.0f%%), and the times of the others include the client's delay",
                  100 * h->kernel_stamps, 100 * MIN_KERNEL_STAMPS);
    cJSON_AddStringToObject(to, "verdict", cJSON_GetArraySize(doubts) ? "doubtful" : "good");
    cJSON_AddItemToObject(to, "doubts", doubts);
    cJSON_AddItemToObject(to, "reasons", reasons);
}

static bool is_own_engine(const struct run_info *info)
{
    return info->target_kind && !strcmp(info->target_kind, "kvmark");
}

/* The limits of the run: the options that set one, then the caller's. */
static void put_limits(cJSON *to, const struct run_info *info)
{
    static const struct {
        const char *key;        /* as in run.json */
        const char *option;     /* the option that sets the limit */
        bool of_kvmarks_engine; /* the option has no effect on an external server */
    } limits[] = {{"gpu_memory_limit", "gpu-memory-limit", true},
                  {"gpu_memory_utilization", "gpu-memory-utilization", true},
                  {"num_gpu_blocks_override", "num-gpu-blocks-override", true},
                  {"max_model_len", "max-model-len", true},
                  {"max_num_seqs", "max-num-seqs", true},
                  {"max_num_batched_tokens", "max-num-batched-tokens", true},
                  {"num_clients", "num-clients", false},
                  {"max_concurrency", "max-concurrency", false},
                  {"request_timeout_sec", "request-timeout-sec", false}};
    cJSON *reasons = cJSON_CreateObject();
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(info->options, limits[i].option);
        bool has_effect = is_own_engine(info) || !limits[i].of_kvmarks_engine;
        if (has_effect && v && (cJSON_IsNumber(v) ? v->valuedouble > 0 : cJSON_IsString(v)))
            cJSON_AddItemToObject(to, limits[i].key, cJSON_Duplicate(v, false));
        else {
            cJSON_AddNullToObject(to, limits[i].key);
            cJSON_AddStringToObject(reasons, limits[i].key,
                                    has_effect ? "the option is not set"
                                               : "the target is an external server, whose limit is not known");
        }
    }
    for (const cJSON *v = info->limits ? info->limits->child : NULL; v; v = v->next)
        if (!cJSON_GetObjectItemCaseSensitive(to, v->string))
            cJSON_AddItemToObject(to, v->string, cJSON_Duplicate(v, true));
    cJSON_AddItemToObject(to, "reasons", reasons);
}

static void put_workload(cJSON *to, const struct run_info *info)
{
    put_text(to, "name", info->workload, "the workload has no name");
    put_text(to, "sha256", info->workload_sha256, "the workload was not hashed");
    cJSON_AddNumberToObject(to, "requests", info->workload_requests);
    cJSON_AddStringToObject(to, "kind", wl_kind_ops(info->workload_kind)->name);
    put_text(to, "text", info->workload_text, "workloads of this kind use no source text");
}

static void put_target(cJSON *to, const struct run_info *info, const struct hz_trace *t)
{
    const char *unknown =
        is_own_engine(info) ? not_recorded : "the target is an external server, which does not report this";
    put_text(to, "kind", info->target_kind, not_recorded);
    put_text(to, "device", info->device, unknown);
    put_text(to, "model", info->model && *info->model ? info->model : t->model, "the server lists no model");
    put_text(to, "kv", info->kv, unknown);
    put_text(to, "dtype", info->dtype, unknown);
    put_text(to, "url", info->target_url, "kvmark started the engine itself for this run");
    put_text(to, "version", t->server_version, "GET /version of the server returned no version");
    cJSON_AddBoolToObject(to, "dummy_weights", info->dummy_weights);
    cJSON_AddBoolToObject(to, "simulated", info->simulated);
}

static void put_provenance(cJSON *to, const struct run_info *info)
{
    put_text(to, "command", info->command, not_recorded);
    put_text(to, "commit", info->commit, "the program was built outside a git repository");
    put_text(to, "binary_sha256", info->binary_sha256, "the program file was not hashed");
    put_text(to, "started", info->started, not_recorded);
}

/* The members of the trace that neither requests.csv nor tokens.bin has. */
static void put_trace(cJSON *to, const struct hz_trace *t)
{
    cJSON_AddNumberToObject(to, "requests", t->n);
    cJSON_AddNumberToObject(to, "events", (double)t->n_ticks);
    cJSON_AddNumberToObject(to, "length_ns", (double)(t->end_ns - t->begin_ns));
    cJSON_AddNumberToObject(to, "warmup_ns", (double)t->warmup_ns);
    cJSON_AddNumberToObject(to, "warmup_requests", t->n_warm);
    cJSON_AddNumberToObject(to, "abandoned", t->abandoned);
    cJSON_AddNumberToObject(to, "dropped", t->dropped);
    cJSON_AddBoolToObject(to, "stopped", t->stopped);
    cJSON_AddBoolToObject(to, "fixed_history", t->fixed_history);
}

/* The statistics of each tier, with the names of /metrics less their prefix and the ending _total: counters over the
 * run, gauges at its end. */
static void put_tiers(cJSON *to, const cJSON *tiers)
{
    for (const cJSON *t = tiers->child; t; t = t->next) {
        cJSON *one = cJSON_AddObjectToObject(to, t->string);
        for (const cJSON *v = t->child; v; v = v->next) {
            size_t len = strlen(v->string), tail = sizeof "_total" - 1;
            char name[96];
            if (len > tail && !strcmp(v->string + len - tail, "_total"))
                len -= tail;
            snprintf(name, sizeof name, "%.*s", (int)len, v->string);
            cJSON_AddNumberToObject(one, name, v->valuedouble);
        }
    }
}

static void put_cache(cJSON *to, const struct run_info *info)
{
    if (info->cache_tiers) {
        cJSON *c = cJSON_AddObjectToObject(to, "cache");
        cJSON_AddNumberToObject(c, "ready_s", info->cache_ready_s);
        cJSON_AddBoolToObject(c, "complete", info->cache_complete);
        put_tiers(cJSON_AddObjectToObject(c, "tiers"), info->cache_tiers);
        return;
    }
    cJSON_AddNullToObject(to, "cache");
    cJSON_AddStringToObject(reasons_of(to), "cache",
                            is_own_engine(info) ? "the engine ran without a cache layer, or returned no metrics"
                                                : "the target is an external server, whose tiers are not known");
}

static cJSON *run_json(const struct run_info *info, const struct hz_trace *t, const struct hz_summary *seed,
                       const struct hz_summary *strict)
{
    cJSON *v = cJSON_CreateObject();
    cJSON_AddStringToObject(v, "schema", schema);
    cJSON_AddStringToObject(v, "profile", "seed");
    put_workload(cJSON_AddObjectToObject(v, "workload"), info);
    put_target(cJSON_AddObjectToObject(v, "target"), info, t);
    put_provenance(cJSON_AddObjectToObject(v, "provenance"), info);
    cJSON_AddItemToObject(v, "summary", hz_summary_json(seed));
    cJSON_AddItemToObject(v, "summary_strict", hz_summary_json(strict));
    put_health(cJSON_AddObjectToObject(v, "health"), &t->health);
    put_limits(cJSON_AddObjectToObject(v, "limits"), info);
    put_trace(cJSON_AddObjectToObject(v, "trace"), t);
    cJSON_AddItemToObject(v, "options", info->options ? cJSON_Duplicate(info->options, true) : cJSON_CreateObject());
    put_cache(v, info);
    if (info->server_metrics)
        cJSON_AddItemToObject(v, "server_metrics", cJSON_Duplicate(info->server_metrics, true));
    else {
        cJSON_AddNullToObject(v, "server_metrics");
        cJSON_AddStringToObject(reasons_of(v), "server_metrics", "GET /metrics of the server returned no metrics");
    }
    return v;
}

static int put_file(const char *dir, const char *name, const struct km_buf *b, struct km_err *err)
{
    char *path = km_path(dir, name);
    int rc = path && km_buf_ok(b) ? km_file_write(path, km_buf_str(b), b->len, err)
                                  : km_fail(err, KM_ENOMEM, "no memory for %s", name);
    km_free(path);
    return rc;
}

static int put_json(const char *dir, const char *name, cJSON *v, struct km_err *err)
{
    char *path = km_path(dir, name);
    int rc = path && v ? km_json_write(path, v, err) : km_fail(err, KM_ENOMEM, "no memory for %s", name);
    km_free(path);
    cJSON_Delete(v);
    return rc;
}

int run_folder_write(const char *dir, const struct run_info *info, const struct hz_trace *t,
                     const struct hz_summary *seed, const struct hz_summary *strict, struct km_err *err)
{
    struct km_buf b = {0};
    char *path = km_path(dir, "run.json");
    int rc = !path ? km_fail(err, KM_ENOMEM, "no memory for a run's path")
             : km_file_exists(path)
                 ? km_fail(err, KM_EINVAL, "%s already holds a run; choose another folder or remove this one", dir)
                 : km_mkdirs(dir, err);
    km_free(path);
    if (!rc) {
        tf_csv_write(t, info->set, &b);
        rc = put_file(dir, "requests.csv", &b, err);
    }
    if (!rc) {
        km_buf_clear(&b);
        tf_ticks_write(t, &b);
        rc = put_file(dir, "tokens.bin", &b, err);
    }
    km_buf_free(&b);
    if (!rc)
        rc = put_json(dir, "env.json", hz_environment(), err);
    return rc ? rc : put_json(dir, "run.json", run_json(info, t, seed, strict), err);
}

static int get_file(const char *dir, const char *name, struct km_buf *out, struct km_err *err)
{
    char *path = km_path(dir, name);
    int rc = path ? km_file_read(path, MAX_FILE, out, err) : km_fail(err, KM_ENOMEM, "no memory for %s", name);
    km_free(path);
    return rc;
}

static int read_health(const cJSON *v, struct hz_health *h, struct km_err *err)
{
    int rc = 0;
    for (int i = 0; !rc && i < N_HEALTH; i++) {
        void *p = (char *)h + health_keys[i].at;
        if (health_keys[i].integer)
            rc = km_json_int(v, health_keys[i].key, false, 0, INT64_MAX / 2, p, err);
        else {
            *(double *)p = NAN;
            rc = km_json_num(v, health_keys[i].key, false, -INFINITY, INFINITY, p, err);
        }
    }
    return rc;
}

static int read_trace_facts(const cJSON *v, struct hz_trace *t, struct km_err *err)
{
    int64_t length = 0, warmup = 0, abandoned = 0, dropped = 0;
    int rc = km_json_int(v, "length_ns", true, 0, INT64_MAX / 2, &length, err);
    if (!rc)
        rc = km_json_int(v, "warmup_ns", false, 0, INT64_MAX / 2, &warmup, err);
    if (!rc)
        rc = km_json_int(v, "abandoned", false, 0, INT32_MAX, &abandoned, err);
    if (!rc)
        rc = km_json_int(v, "dropped", false, 0, INT32_MAX, &dropped, err);
    if (!rc)
        rc = km_json_bool(v, "stopped", false, &t->stopped, err);
    if (!rc)
        rc = km_json_bool(v, "fixed_history", false, &t->fixed_history, err);
    t->begin_ns = TF_BEGIN_NS;
    t->end_ns = TF_BEGIN_NS + length;
    t->warmup_ns = warmup;
    t->abandoned = (int)abandoned;
    t->dropped = (int)dropped;
    return rc;
}

/* Parses out->json into the other members. */
static int read_json(struct run_folder *out, struct km_err *err)
{
    const cJSON *part = NULL;
    const char *name = NULL;
    int rc = km_json_str(out->json, "schema", true, &name, err);
    if (!rc && strcmp(name, schema))
        rc = km_fail(err, KM_EFORMAT, "\"schema\" is \"%.40s\"; this program reads only %s", name, schema);
    if (!rc && !(rc = km_json_item(out->json, "summary", true, cJSON_Object, &part, err)))
        rc = hz_summary_from_json(part, &out->seed, err);
    if (!rc && !(rc = km_json_item(out->json, "summary_strict", true, cJSON_Object, &part, err)))
        rc = hz_summary_from_json(part, &out->strict, err);
    if (!rc && !(rc = km_json_item(out->json, "health", true, cJSON_Object, &part, err)))
        rc = read_health(part, &out->trace.health, err);
    if (!rc && !(rc = km_json_item(out->json, "trace", true, cJSON_Object, &part, err)))
        rc = read_trace_facts(part, &out->trace, err);
    if (!rc && !(rc = km_json_item(out->json, "target", true, cJSON_Object, &part, err))) {
        const char *model = "", *version = "";
        rc = km_json_str(part, "model", false, &model, err);
        if (!rc)
            rc = km_json_str(part, "version", false, &version, err);
        snprintf(out->trace.model, sizeof out->trace.model, "%s", model);
        snprintf(out->trace.server_version, sizeof out->trace.server_version, "%s", version);
    }
    return rc;
}

bool run_folder_exists(const char *dir)
{
    char *path = km_path(dir, "run.json");
    bool exists = path && km_file_exists(path);
    km_free(path);
    return exists;
}

int run_folder_read(struct run_folder *out, const char *dir, struct km_err *err)
{
    struct km_buf b = {0};
    *out = (struct run_folder){.dir = km_strdup(dir)};
    char *path = km_path(dir, "run.json");
    const char *file = "run.json"; /* the file being read */
    int rc = out->dir && path ? 0 : km_fail(err, KM_ENOMEM, "no memory for a run");
    if (!rc && !km_file_exists(path)) {
        rc = km_fail(err, KM_ENOENT, "%s has no run.json: it is not a run folder, or the run did not finish", dir);
        km_free(path);
        run_folder_free(out);
        return rc;
    }
    if (!rc && !(rc = km_json_file(path, MAX_FILE, &out->json, err)))
        rc = read_json(out, err);
    km_free(path);
    if (!rc) {
        file = "requests.csv";
        if (!(rc = get_file(dir, file, &b, err)))
            rc = tf_csv_read(km_buf_str(&b), b.len, &out->trace, err);
    }
    if (!rc) {
        file = "tokens.bin";
        km_buf_clear(&b);
        if (!(rc = get_file(dir, file, &b, err)))
            rc = tf_ticks_read(km_buf_str(&b), b.len, &out->trace, err);
    }
    km_buf_free(&b);
    if (rc) {
        km_context(err, "%s/%s", dir, file);
        run_folder_free(out);
    }
    return rc;
}

void run_folder_free(struct run_folder *r)
{
    if (!r)
        return;
    km_free(r->dir);
    cJSON_Delete(r->json);
    hz_trace_free(&r->trace);
    *r = (struct run_folder){0};
}

double run_folder_sample(const struct run_folder *run, const struct hz_rec *r, enum hz_sample what,
                         enum hz_profile profile)
{
    const char *kind = NULL;
    (void)km_json_str(cJSON_GetObjectItemCaseSensitive(run->json, "workload"), "kind", false, &kind, NULL);
    struct hz_request q = hz_request_of(&run->trace, r, wl_kind_named(kind), profile);
    return what == HZ_TTFT ? q.ttft_ms : what == HZ_TPOT ? q.tpot_ms : q.e2e_ms;
}

/* Writes and reads a run folder. The trace's two files are in tracefile.[ch], the summaries in summary.[ch].
 *
 * In run.json the order of the keys is fixed. A value that is not known is null, and the "reasons" object beside it
 * says why. */
#include "harness/run/runfolder.h"

#include "base/file.h"
#include "base/mem.h"
#include "harness/run/env.h"
#include "harness/run/tracefile.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static const char schema[] = "kvmark.run.1";
enum { MAX_FILE = 1 << 30 };

/* Beyond these limits the client's own delays are a visible part of the figures, and the run is "doubtful". The limit
 * of the send lag is higher, because N prompts sent at once leave one by one, about 30 us each, and because no latency
 * but the response TTFT includes the lag. */
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

/* The text; null and the reason when it is empty. */
static void put_text(cJSON *to, const char *key, const char *text, const char *reason)
{
    if (text && *text) {
        cJSON_AddStringToObject(to, key, text);
        return;
    }
    cJSON_AddNullToObject(to, key);
    cJSON *reasons = cJSON_GetObjectItemCaseSensitive(to, "reasons");
    if (!reasons)
        reasons = cJSON_AddObjectToObject(to, "reasons");
    cJSON_AddStringToObject(reasons, key, reason);
}

static void put_health(cJSON *to, const struct hz_health *h)
{
    char why[120];
    cJSON *reasons = cJSON_CreateObject(), *doubts = cJSON_CreateArray();
    for (int i = 0; i < N_HEALTH; i++) {
        const void *p = (const char *)h + health_keys[i].at;
        double v = health_keys[i].integer ? (double)*(const int64_t *)p : *(const double *)p;
        if (isfinite(v))
            cJSON_AddNumberToObject(to, health_keys[i].key, v);
        else {
            cJSON_AddNullToObject(to, health_keys[i].key);
            cJSON_AddStringToObject(reasons, health_keys[i].key,
                                    h->events ? "the kernel gave no receive stamps" : "nothing was received");
        }
    }
    if (h->send_lag_p99_ms > MAX_SEND_LAG_MS) {
        snprintf(why, sizeof why, "requests left late: send lag p99 %.1f ms is over %.0f", h->send_lag_p99_ms,
                 MAX_SEND_LAG_MS);
        cJSON_AddItemToArray(doubts, cJSON_CreateString(why));
    }
    if (h->loop_gap_p99_ms > MAX_LOOP_GAP_MS) {
        snprintf(why, sizeof why, "the client was starved: loop gap p99 %.1f ms is over %.0f", h->loop_gap_p99_ms,
                 MAX_LOOP_GAP_MS);
        cJSON_AddItemToArray(doubts, cJSON_CreateString(why));
    }
    if (h->kernel_stamps < MIN_KERNEL_STAMPS) {
        snprintf(
            why, sizeof why,
            "only %.0f%% of the events that waited for the client have kernel stamps; the others include its delay",
            100 * h->kernel_stamps);
        cJSON_AddItemToArray(doubts, cJSON_CreateString(why));
    }
    cJSON_AddStringToObject(to, "verdict", cJSON_GetArraySize(doubts) ? "doubtful" : "good");
    cJSON_AddItemToObject(to, "doubts", doubts);
    cJSON_AddItemToObject(to, "reasons", reasons);
}

/* The limits of the run: the options that set one, then the caller's. */
static void put_limits(cJSON *to, const struct run_info *info)
{
    static const char *const keys[] = {"gpu-memory-limit", "gpu-memory-utilization", "num-gpu-blocks-override",
                                       "max-model-len",    "max-num-seqs",           "max-num-batched-tokens",
                                       "num-clients",      "max-concurrency",        "request-timeout-sec"};
    bool own = info->target_kind && !strcmp(info->target_kind, "kvmark");
    cJSON *reasons = cJSON_CreateObject();
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(info->options, keys[i]);
        char name[64];
        snprintf(name, sizeof name, "%s", keys[i]);
        for (char *p = name; *p; p++)
            *p = *p == '-' ? '_' : *p;
        bool engines = i < 6; /* an option of our engine, which has no effect on another server */
        bool set = v && (cJSON_IsNumber(v) ? v->valuedouble > 0 : cJSON_IsString(v)) && (own || !engines);
        if (set)
            cJSON_AddItemToObject(to, name, cJSON_Duplicate(v, false));
        else {
            cJSON_AddNullToObject(to, name);
            cJSON_AddStringToObject(reasons, name, engines && !own ? "the server's own affair" : "not set");
        }
    }
    for (const cJSON *v = info->limits ? info->limits->child : NULL; v; v = v->next)
        if (!cJSON_GetObjectItemCaseSensitive(to, v->string))
            cJSON_AddItemToObject(to, v->string, cJSON_Duplicate(v, true));
    cJSON_AddItemToObject(to, "reasons", reasons);
}

static cJSON *run_json(const struct run_info *info, const struct hz_trace *t, const struct hz_summary *seed,
                       const struct hz_summary *strict)
{
    cJSON *v = cJSON_CreateObject();
    cJSON_AddStringToObject(v, "schema", schema);
    cJSON_AddStringToObject(v, "profile", "seed");

    cJSON *w = cJSON_AddObjectToObject(v, "workload");
    put_text(w, "name", info->workload, "the workload has no name");
    put_text(w, "sha256", info->workload_sha256, "the workload was not hashed");
    cJSON_AddNumberToObject(w, "requests", info->workload_requests);
    cJSON_AddStringToObject(w, "kind", wl_kind_ops(info->workload_kind)->name);
    put_text(w, "text", info->workload_text, "the workload needs no text file");

    cJSON *g = cJSON_AddObjectToObject(v, "target");
    bool own = info->target_kind && !strcmp(info->target_kind, "kvmark");
    put_text(g, "kind", info->target_kind, "not said");
    put_text(g, "device", info->device, own ? "not said" : "another server: its device is not known here");
    put_text(g, "model", info->model && *info->model ? info->model : t->model, "the server named no model");
    put_text(g, "kv", info->kv, own ? "not said" : "another server: its cache is not known here");
    put_text(g, "dtype", info->dtype, own ? "not said" : "another server: its dtype is not known here");
    put_text(g, "url", info->target_url, "an engine started for this run");
    put_text(g, "version", t->server_version, "the server has no /version");
    cJSON_AddBoolToObject(g, "dummy_weights", info->dummy_weights);
    cJSON_AddBoolToObject(g, "simulated", info->simulated);

    cJSON *p = cJSON_AddObjectToObject(v, "provenance");
    put_text(p, "command", info->command, "not said");
    put_text(p, "commit", info->commit, "built outside a repository");
    put_text(p, "binary_sha256", info->binary_sha256, "the binary was not hashed");
    put_text(p, "started", info->started, "not said");

    cJSON_AddItemToObject(v, "summary", hz_summary_json(seed));
    cJSON_AddItemToObject(v, "summary_strict", hz_summary_json(strict));
    put_health(cJSON_AddObjectToObject(v, "health"), &t->health);
    put_limits(cJSON_AddObjectToObject(v, "limits"), info);

    cJSON *r = cJSON_AddObjectToObject(v, "trace");
    cJSON_AddNumberToObject(r, "requests", t->n);
    cJSON_AddNumberToObject(r, "events", (double)t->n_ticks);
    cJSON_AddNumberToObject(r, "length_ns", (double)(t->end_ns - t->begin_ns));
    cJSON_AddNumberToObject(r, "warmup_ns", (double)t->warmup_ns);
    cJSON_AddNumberToObject(r, "warmup_requests", t->n_warm);
    cJSON_AddNumberToObject(r, "abandoned", t->abandoned);
    cJSON_AddNumberToObject(r, "dropped", t->dropped);
    cJSON_AddBoolToObject(r, "stopped", t->stopped);
    cJSON_AddBoolToObject(r, "fixed_history", t->fixed_history);

    cJSON_AddItemToObject(v, "options", info->options ? cJSON_Duplicate(info->options, true) : cJSON_CreateObject());
    if (info->server_metrics)
        cJSON_AddItemToObject(v, "server_metrics", cJSON_Duplicate(info->server_metrics, true));
    else {
        cJSON_AddNullToObject(v, "server_metrics");
        cJSON_AddStringToObject(cJSON_AddObjectToObject(v, "reasons"), "server_metrics",
                                "the server gave no metrics that are understood");
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
                 ? km_fail(err, KM_EINVAL, "%s already holds a run; choose another folder or remove it", dir)
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
    const char *s = NULL;
    int rc = km_json_str(out->json, "schema", true, &s, err);
    if (!rc && strcmp(s, schema))
        rc = km_fail(err, KM_EFORMAT, "its schema is \"%.40s\"; this program reads %s", s, schema);
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
    const char *at = "run.json";
    int rc = out->dir && path ? 0 : km_fail(err, KM_ENOMEM, "no memory for a run");
    if (!rc && !km_file_exists(path)) {
        rc = km_fail(err, KM_ENOENT, "%s holds no run.json: it is not a run folder, or the run did not end", dir);
        km_free(path);
        run_folder_free(out);
        return rc;
    }
    if (!rc && !(rc = km_json_file(path, MAX_FILE, &out->json, err)))
        rc = read_json(out, err);
    km_free(path);
    if (!rc) {
        at = "requests.csv";
        if (!(rc = get_file(dir, at, &b, err)))
            rc = tf_csv_read(km_buf_str(&b), b.len, &out->trace, err);
    }
    if (!rc) {
        at = "tokens.bin";
        km_buf_clear(&b);
        if (!(rc = get_file(dir, at, &b, err)))
            rc = tf_ticks_read(km_buf_str(&b), b.len, &out->trace, err);
    }
    km_buf_free(&b);
    if (rc) {
        km_context(err, "%s/%s", dir, at);
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

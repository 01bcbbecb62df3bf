/* kvmark cache: describes, verifies or clears the folder of a disk tier. */
#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/cmd.h"
#include "kvcache/tiers/disk_files.h"
#include "kvcache/tiers/disk_verify.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct cache_cmd {
    bool json;
};

static const struct km_option rows[] = {
    {.name = "json", KM_FIELD(struct cache_cmd, json), .help = "print one JSON object, not lines"},
};

static int groups(void *options, struct km_option_group *out)
{
    out[0] = KM_OPTION_GROUP("Output", rows, options);
    return 1;
}

/* The chunk files of a folder, sorted by fingerprint and key. */
struct listing {
    struct disk_file *file; /* [n] */
    int n, cap;
};

/* The chunks of one fingerprint: file[from, to) of the listing. */
struct model {
    const struct km_digest *fingerprint;
    int from, to;
    int64_t bytes, oldest, newest; /* times in ns since 1970 */
};

static int note(void *arg, const struct disk_file *f)
{
    struct listing *l = arg;
    if (l->n == l->cap) {
        int cap = l->cap ? 2 * l->cap : 256;
        struct disk_file *file = km_reallocarray(l->file, (size_t)cap, sizeof *file);
        if (!file)
            return KM_ENOMEM;
        l->file = file;
        l->cap = cap;
    }
    l->file[l->n++] = *f;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const struct disk_file *x = a, *y = b;
    int order = memcmp(&x->fingerprint, &y->fingerprint, sizeof x->fingerprint);
    return order ? order : memcmp(&x->key, &y->key, sizeof x->key);
}

/* The model whose chunks begin at file `from`. */
static struct model next_model(const struct listing *l, int from)
{
    const struct disk_file *f = &l->file[from];
    struct model m = {.fingerprint = &f->fingerprint, .from = from, .oldest = f->mtime, .newest = f->mtime};
    for (m.to = from; m.to < l->n && !memcmp(&l->file[m.to].fingerprint, m.fingerprint, sizeof *m.fingerprint);
         m.to++) {
        f = &l->file[m.to];
        m.bytes += f->bytes;
        m.oldest = f->mtime < m.oldest ? f->mtime : m.oldest;
        m.newest = f->mtime > m.newest ? f->mtime : m.newest;
    }
    return m;
}

static void print_json(cJSON *v)
{
    char *text = cJSON_Print(v);
    if (text)
        puts(text);
    cJSON_free(text);
}

static void time_text(int64_t ns, char out[32])
{
    time_t s = (time_t)(ns / 1000000000);
    struct tm tm;
    gmtime_r(&s, &tm);
    strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

static void describe(const char *dir, const struct model *m, cJSON *list)
{
    char hex[65], oldest[32], newest[32];
    struct kvc_geometry g;
    const int chunks = m->to - m->from, tokens = disk_about_read(dir, m->fingerprint, &g, NULL) ? 0 : g.chunk_size;
    km_hex(m->fingerprint, hex);
    time_text(m->oldest, oldest);
    time_text(m->newest, newest);
    if (!list) {
        printf("%s  %d chunks", hex, chunks);
        if (tokens)
            printf(" of %d tokens (%d layers, %d KV heads of %d, %s)", tokens, g.pool.n_layers, g.pool.n_kv_heads,
                   g.pool.head_dim, km_dtype_name(g.pool.dtype));
        printf(", %s, used from %s to %s\n", km_size_text(m->bytes).s, oldest, newest);
        return;
    }
    cJSON *v = cJSON_CreateObject();
    cJSON_AddItemToArray(list, v);
    cJSON_AddStringToObject(v, "fingerprint", hex);
    cJSON_AddNumberToObject(v, "chunks", chunks);
    cJSON_AddNumberToObject(v, "bytes", (double)m->bytes);
    if (tokens)
        cJSON_AddNumberToObject(v, "chunk_tokens", tokens);
    else
        cJSON_AddNullToObject(v, "chunk_tokens");
    cJSON_AddStringToObject(v, "oldest", oldest);
    cJSON_AddStringToObject(v, "newest", newest);
}

static int run_stat(const char *dir, const struct listing *l, bool json)
{
    cJSON *all = json ? cJSON_CreateObject() : NULL, *list = json ? cJSON_AddArrayToObject(all, "models") : NULL;
    int64_t bytes = 0;
    for (int i = 0; i < l->n;) {
        struct model m = next_model(l, i);
        describe(dir, &m, list);
        bytes += m.bytes;
        i = m.to;
    }
    if (json) {
        cJSON_AddNumberToObject(all, "chunks", l->n);
        cJSON_AddNumberToObject(all, "bytes", (double)bytes);
        print_json(all);
        cJSON_Delete(all);
    } else {
        printf("%d chunks, %s\n", l->n, km_size_text(bytes).s);
    }
    return CMD_OK;
}

static void report_bad(const char *dir, const struct disk_file *f, const struct km_err *why, cJSON *bad)
{
    char fingerprint[65], path[DISK_PATH + 256], name[DISK_NAME];
    km_hex(&f->fingerprint, fingerprint);
    disk_name_final(&f->key, name);
    snprintf(path, sizeof path, "%s/%s/%.2s/%s", dir, fingerprint, name, name);
    if (!bad) {
        printf("%s: %s\n", path, why->msg);
        return;
    }
    cJSON *v = cJSON_CreateObject();
    cJSON_AddItemToArray(bad, v);
    cJSON_AddStringToObject(v, "file", path);
    cJSON_AddStringToObject(v, "problem", why->msg);
}

/* Verifies the chunks of one model; returns the number of bad ones. A chunk that is deleted meanwhile is not bad. */
static int verify_model(const char *dir, const struct listing *l, const struct model *m, cJSON *bad)
{
    struct kvc_geometry g;
    struct km_err err;
    int n_bad = 0, about = disk_about_read(dir, m->fingerprint, &g, &err);
    for (int i = m->from; i < m->to; i++) {
        const struct disk_file *f = &l->file[i];
        int rc = about ? about : disk_verify(dir, &f->fingerprint, &f->key, &g, &err);
        if (!rc || (!about && rc == KM_ENOENT))
            continue;
        report_bad(dir, f, &err, bad);
        n_bad++;
    }
    return n_bad;
}

static int run_verify(const char *dir, const struct listing *l, bool json)
{
    cJSON *all = json ? cJSON_CreateObject() : NULL, *list = json ? cJSON_AddArrayToObject(all, "bad") : NULL;
    int bad = 0;
    for (int i = 0; i < l->n;) {
        struct model m = next_model(l, i);
        bad += verify_model(dir, l, &m, list);
        i = m.to;
    }
    if (json) {
        cJSON_AddNumberToObject(all, "chunks", l->n);
        cJSON_AddNumberToObject(all, "bad_chunks", bad);
        print_json(all);
        cJSON_Delete(all);
    } else {
        printf("%d chunks, %d bad\n", l->n, bad);
    }
    return bad ? CMD_FAILED : CMD_OK;
}

static int run_clear(const char *dir, const struct listing *l, bool json)
{
    int removed = 0, status = CMD_OK;
    int64_t bytes = 0;
    for (int i = 0; i < l->n; i++) {
        const struct disk_file *f = &l->file[i];
        int rc = disk_file_remove(dir, &f->fingerprint, &f->key);
        removed += !rc;
        bytes += rc ? 0 : f->bytes;
        if (rc && rc != -ENOENT && status == CMD_OK) {
            km_log(KM_LOG_ERROR, "cannot remove a chunk in %s: %s", dir, strerror(-rc));
            status = CMD_FAILED;
        }
        if (i + 1 == l->n || memcmp(&f->fingerprint, &f[1].fingerprint, sizeof f->fingerprint))
            disk_folder_remove(dir, &f->fingerprint); /* stays if a process is writing a chunk in it */
    }
    if (json)
        printf("{\"removed_chunks\": %d, \"removed_bytes\": %lld}\n", removed, (long long)bytes);
    else
        printf("%d chunks removed, %s\n", removed, km_size_text(bytes).s);
    return status;
}

static const struct {
    const char *name;
    int (*run)(const char *dir, const struct listing *l, bool json);
} actions[] = {{"stat", run_stat}, {"verify", run_verify}, {"clear", run_clear}};

static int run(const struct cmd_call *call)
{
    const struct cache_cmd *o = call->options;
    struct km_err err;
    if (call->args.n != 2)
        return km_fail(&err, KM_EINVAL, "cache takes an action and a folder, such as: kvmark cache stat DIR"),
               cmd_error(&err, CMD_USAGE);
    const char *want = call->args.v[0], *dir = call->args.v[1];
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++) {
        if (strcmp(want, actions[i].name))
            continue;
        struct listing l = {0};
        int rc = km_dir_exists(dir) ? disk_scan(dir, !strcmp(want, "clear"), note, &l, &err)
                                    : km_fail(&err, KM_ENOENT, "there is no folder %s", dir);
        if (!rc && l.n)
            qsort(l.file, (size_t)l.n, sizeof *l.file, by_name);
        int status = rc ? cmd_error(&err, cmd_status_of(rc)) : actions[i].run(dir, &l, o->json);
        km_free(l.file);
        return status;
    }
    km_fail(&err, KM_EINVAL, "\"%s\" is not an action of cache; use stat, verify or clear", want);
    return cmd_error(&err, CMD_USAGE);
}

const struct cmd cmd_cache = {
    .name = "cache",
    .usage = "stat|verify|clear DIR [--json]",
    .summary = "Describe, verify or clear the folder of a disk tier",
    .text = "DIR is the folder of --kv-cache disk=DIR:SIZE, or local_disk of a YAML file.\n\n"
            "stat prints, for each model that has chunks in the folder, their number and bytes, and when the oldest "
            "and the newest were last used. The first word of a line is the model's fingerprint, which names a folder "
            "in DIR; its file about.json describes the model.\n\n"
            "verify reads every chunk, and compares its header and each page of KV with their checksums. It prints the "
            "files that are bad. The exit status is 1 if there is one. A bad file needs no action: a server that finds "
            "one computes the tokens instead, and deletes the file.\n\n"
            "clear removes all chunks. It removes no other file, and may be used while a server uses the folder.",
    .options_size = sizeof(struct cache_cmd),
    .groups = groups,
    .run = run,
};

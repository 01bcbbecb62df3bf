/* A set: generating it by its kind, its SHA-256, writing it to a file, freeing it.
 *
 * The SHA-256 covers what a client would send: for each conversation the line "ID MESSAGES", and for each of its
 * messages the line "ROLE TOKENS BYTES", the text and a newline. Sets with equal SHA-256 are the same workload, whether
 * they were generated or read from a file of conversations. */
#include "workloads/workload.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "workloads/spec.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static int compute_sha256(struct wl_set *s, struct km_err *err)
{
    struct km_sha *h;
    int rc = km_sha_new(&h, err);
    if (rc)
        return rc;
    char line[80];
    km_sha_begin(h);
    for (int c = 0; c < s->n; c++) {
        const struct wl_conv *v = &s->convs[c];
        km_sha_add(h, v->id, strlen(v->id));
        km_sha_add(h, line, (size_t)snprintf(line, sizeof line, " %d\n", v->n));
        for (int i = 0; i < v->n; i++) {
            const struct wl_msg *m = &v->msgs[i];
            int n =
                snprintf(line, sizeof line, "%s %d %zu\n", m->assistant ? "assistant" : "user", m->n_tokens, m->len);
            km_sha_add(h, line, (size_t)n);
            km_sha_add(h, m->text, m->len);
            km_sha_add(h, "\n", 1);
        }
    }
    struct km_digest d = km_sha_end(h);
    km_hex(&d, s->sha256);
    km_sha_free(h);
    return 0;
}

int wl_generate(struct wl_set **out, const struct wl_spec *s, const struct wl_gen_opts *o, const struct tok *t,
                struct km_err *err)
{
    *out = NULL;
    const struct wl_kind_ops *ops = wl_kind_ops(s->kind);
    const char *unit = ops->single_prompts ? "prompts" : "conversations";
    const char *other = ops->single_prompts ? "conversations" : "prompts";
    int n = ops->single_prompts ? o->num_prompts : o->num_conversations;
    if (ops->single_prompts ? o->num_conversations : o->num_prompts)
        return km_fail(err, KM_EINVAL, "--num-%s does not fit workload %s; --num-%s sets its size", other, s->name,
                       unit);
    n = n > 0 ? n : s->n;
    if (n > WL_MAX_CONVS)
        return km_fail(err, KM_ELIMIT, "--num-%s is %d; at most %d are accepted", unit, n, WL_MAX_CONVS);
    if (n > s->n_max)
        return km_fail(err, KM_EINVAL, "--num-%s is %d; %s has only %d %s", unit, n, s->name, s->n_max, unit);
    if (o->seed > s->seed_max)
        return km_fail(err, KM_EINVAL,
                       "the seed is %" PRIu64 "; the generator of workload %s takes seeds up to %" PRIu64, o->seed,
                       s->name, s->seed_max);
    if (ops->needs_tokenizer && !t)
        return km_fail(err, KM_EINVAL, "workload %s needs a tokenizer: pass --tokenizer DIR", s->name);
    struct wl_set *set = km_calloc(1, sizeof *set);
    int rc = 0;
    if (set) {
        set->name = km_strdup(s->name);
        set->convs = km_calloc((size_t)n, sizeof *set->convs);
        set->n = set->convs ? n : 0;
        set->kind = s->kind;
    }
    if (!set || !set->name || !set->convs)
        rc = km_fail(err, KM_ENOMEM, "out of memory for %d %s", n, unit);
    if (!rc)
        rc = ops->generate(set, s, o, t, err);
    if (!rc)
        rc = compute_sha256(set, err);
    if (rc) {
        wl_set_free(set);
        return rc;
    }
    for (int c = 0; c < n; c++)
        set->n_requests += set->convs[c].n / 2;
    *out = set;
    return 0;
}

void wl_set_free(struct wl_set *s)
{
    if (!s)
        return;
    for (int c = 0; c < s->n; c++) {
        for (int i = 0; i < s->convs[c].n; i++) {
            km_free(s->convs[c].msgs[i].text);
            km_free(s->convs[c].msgs[i].ids);
        }
        km_free(s->convs[c].msgs);
        km_free(s->convs[c].id);
    }
    km_free(s->convs);
    km_free(s->name);
    km_free(s);
}

int wl_set_write(const struct wl_set *s, const char *path, struct km_err *err)
{
    struct km_buf b = {0};
    km_buf_puts(&b, "[");
    for (int c = 0; c < s->n; c++) {
        const struct wl_conv *v = &s->convs[c];
        km_buf_puts(&b, c ? ",\n    {\n        \"id\": \"" : "\n    {\n        \"id\": \"");
        km_buf_put_json(&b, v->id, strlen(v->id));
        km_buf_puts(&b, "\",\n        \"messages\": [");
        for (int i = 0; i < v->n; i++) {
            const struct wl_msg *m = &v->msgs[i];
            km_buf_printf(&b, "%s\n            {\n                \"role\": \"%s\",\n                \"content\": \"",
                          i ? "," : "", m->assistant ? "assistant" : "user");
            km_buf_put_json(&b, m->text, m->len);
            km_buf_puts(&b, "\"\n            }");
        }
        km_buf_puts(&b, "\n        ]\n    }");
    }
    km_buf_puts(&b, "\n]\n");
    int rc = km_buf_ok(&b) ? km_file_write(path, b.data, b.len, err)
                           : km_fail(err, KM_ENOMEM, "out of memory writing %s", path);
    km_buf_free(&b);
    return rc;
}

/* Reading a workload file. The file's kind checks everything that can be checked without a tokenizer, so that a file
 * that was read fails later only because of its source text, an option or the tokenizer. */
#include "workloads/spec.h"

#include "base/file.h"
#include "base/mem.h"
#include "workloads/distribution.h"
#include "workloads/workload.h"

#include <string.h>

#define FILE_MAX ((size_t)1 << 30) /* bytes */

/* Finds the file's kind and lets the kind read the rest. text: the file, which s->json was parsed from. */
static int read_kind(struct wl_spec *s, const char *text, struct km_err *err)
{
    const char *type = NULL;
    if (!cJSON_IsObject(s->json) && !cJSON_IsArray(s->json))
        return km_fail(err, KM_EINVAL,
                       "a workload file must hold a JSON object with a \"filetype\", or an array of conversations");
    int rc = cJSON_IsObject(s->json) ? km_json_str(s->json, "filetype", true, &type, err) : 0;
    if (!rc)
        rc = wl_kind_of_file(type, &s->kind, err);
    if (rc)
        return rc;
    const struct wl_kind_ops *ops = wl_kind_ops(s->kind);
    if (ops->params_size && !(s->params = km_calloc(1, ops->params_size)))
        return km_fail(err, KM_ENOMEM, "out of memory for the workload's parameters");
    wl_note_integers(text, s->json);
    s->n_max = WL_MAX_CONVS;
    s->seed_max = UINT64_MAX;
    return ops->read(s, err);
}

static int set_name(struct wl_spec *s, const char *path, struct km_err *err)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    size_t n = strlen(base);
    if (n > 5 && !strcmp(base + n - 5, ".json"))
        n -= 5;
    s->name = km_strndup(base, n);
    s->dir = slash ? km_strndup(path, slash == path ? 1 : (size_t)(slash - path)) : km_strdup(".");
    return s->name && s->dir ? 0 : km_fail(err, KM_ENOMEM, "out of memory reading %s", path);
}

int wl_spec_read(struct wl_spec **out, const char *path, struct km_err *err)
{
    *out = NULL;
    struct wl_spec *s = km_calloc(1, sizeof *s);
    if (!s)
        return km_fail(err, KM_ENOMEM, "out of memory reading %s", path);
    struct km_buf b = {0};
    int rc = set_name(s, path, err);
    if (!rc)
        rc = km_file_read(path, FILE_MAX, &b, err);
    if (!rc) {
        rc = km_json_parse(b.data, b.len, &s->json, err);
        if (!rc)
            rc = read_kind(s, b.data, err);
        if (rc)
            km_context(err, "%s", path);
    }
    km_buf_free(&b);
    if (rc)
        wl_spec_free(s);
    else
        *out = s;
    return rc;
}

void wl_spec_free(struct wl_spec *s)
{
    if (!s)
        return;
    cJSON_Delete(s->json);
    km_free(s->name);
    km_free(s->dir);
    km_free(s->params);
    km_free(s);
}

enum wl_kind wl_spec_kind(const struct wl_spec *s)
{
    return s->kind;
}

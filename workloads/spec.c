/* The workload file: its kind is found here, and the kind checks everything that can be checked without a tokenizer.
 * A spec that was read generates; what can still fail then is the text. */
#include "workloads/spec.h"

#include "base/file.h"
#include "base/mem.h"
#include "workloads/distribution.h"
#include "workloads/workload.h"

#include <string.h>

#define FILE_MAX ((size_t)1 << 30)

/* Finds the file's kind and lets the kind read the rest. */
static int read_kind(struct wl_spec *s, const char *text, struct km_err *err)
{
    const char *type = NULL;
    if (!cJSON_IsObject(s->json) && !cJSON_IsArray(s->json))
        return km_fail(err, KM_EINVAL, "a workload file holds an object, or an array of conversations");
    int rc = cJSON_IsObject(s->json) ? km_json_str(s->json, "filetype", true, &type, err) : 0;
    if (!rc)
        rc = wl_kind_of_file(type, &s->kind, err);
    if (rc)
        return rc;
    const struct wl_kind_ops *ops = wl_kind_ops(s->kind);
    if (ops->params_size && !(s->params = km_calloc(1, ops->params_size)))
        return km_fail(err, KM_ENOMEM, "out of memory for the parameters of the workload");
    wl_note_integers(text, s->json);
    s->n_max = WL_MAX_CONVS;
    s->seed_max = UINT64_MAX;
    return ops->read(s, err);
}

static int name_spec(struct wl_spec *s, const char *path, struct km_err *err)
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
    int rc = name_spec(s, path, err);
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

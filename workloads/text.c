/* Source text: the text files that a workload names, or the built-in text, tokenized as a whole.
 *
 * Files are read as Python reads text, so that the tokens are those of vLLM's generator: line ends of any kind become
 * \n, and a byte order mark stays. */
#include "workloads/text.h"

#include "base/file.h"
#include "base/mem.h"
#include "workloads/builtin_text.h"

#include <stdio.h>
#include <string.h>

#define TEXT_MAX ((size_t)1 << 30) /* bytes */

/* Searches the file in text_dir, the workload's folder, "." and "data". *out: its path (km_free), NULL if not found. */
static int find_file(const char *name, const struct wl_spec *s, const struct wl_gen_opts *o, char **out,
                     struct km_err *err)
{
    const char *dirs[] = {o->text_dir, s->dir, ".", "data"};
    *out = NULL;
    for (int i = 0; i < 4; i++) {
        if (!dirs[i])
            continue;
        char *path = name[0] == '/' ? km_strdup(name) : km_path(dirs[i], name);
        if (!path)
            return km_fail(err, KM_ENOMEM, "out of memory looking for %.200s", name);
        if (km_file_exists(path)) {
            *out = path;
            return 0;
        }
        km_free(path);
    }
    return 0;
}

static void unify_line_ends(struct km_buf *b)
{
    size_t n = 0;
    for (size_t i = 0; i < b->len; i++) {
        if (b->data[i] == '\r' && i + 1 < b->len && b->data[i + 1] == '\n')
            continue;
        b->data[n++] = b->data[i] == '\r' ? '\n' : b->data[i];
    }
    b->len = n;
}

static int check_utf8(const struct km_buf *b, const char *path, struct km_err *err)
{
    for (size_t i = 0; i < b->len;) {
        int n = km_utf8_len(b->data + i, b->len - i, NULL);
        if (!n)
            return km_fail(err, KM_EFORMAT, "%s is not UTF-8 at byte %zu; convert the file to UTF-8", path, i);
        i += (size_t)n;
    }
    return 0;
}

static int add_file(struct wl_text *out, const char *path, const struct tok *t, struct km_err *err)
{
    struct km_buf b = {0};
    int rc = km_file_read(path, TEXT_MAX, &b, err);
    if (!rc)
        rc = check_utf8(&b, path, err);
    if (!rc) {
        unify_line_ends(&b);
        rc = tok_encode(t, b.data, b.len, false, &out->ids, err);
    }
    km_buf_free(&b);
    return rc;
}

static int read_files(struct wl_text *out, const struct wl_spec *s, const struct wl_gen_opts *o, const struct tok *t,
                      struct km_err *err)
{
    const cJSON *f;
    cJSON_ArrayForEach(f, cJSON_GetObjectItemCaseSensitive(s->json, "text_files"))
    {
        const char *name = f->valuestring, *slash = strrchr(name, '/');
        char *path;
        int rc = find_file(name, s, o, &path, err);
        if (!rc && !path)
            rc = km_fail(err, KM_ENOENT,
                         "there is no text file %.200s in %s%s%s, . or data; `make data` fetches the novel "
                         "pg1184.txt, and --text builtin needs no file",
                         name, o->text_dir ? o->text_dir : "", o->text_dir ? ", " : "", s->dir);
        if (!rc)
            rc = add_file(out, path, t, err);
        km_free(path);
        if (rc)
            return rc;
        size_t used = strlen(out->label);
        snprintf(out->label + used, sizeof out->label - used, "%s%s", used ? ", " : "", slash ? slash + 1 : name);
    }
    return 0;
}

/* Makes eight bytes of text per token that is needed, rounded up to 65536 tokens. English text has fewer bytes per
 * token under any vocabulary in use; the caller checks the number of tokens. */
static int make_builtin(struct wl_text *out, int64_t need, const struct tok *t, struct km_err *err)
{
    if (need > (int64_t)(TEXT_MAX / 8))
        return km_fail(err, KM_ELIMIT,
                       "the workload needs %lld tokens of text; the built-in text has at most %zu, so lower the "
                       "workload's lengths",
                       (long long)need, TEXT_MAX / 8);
    struct km_buf b = {0};
    int rc = wl_builtin_text(1, ((size_t)need / 65536 + 1) * 65536 * 8, &b, err);
    if (!rc)
        rc = tok_encode(t, b.data, b.len, false, &out->ids, err);
    snprintf(out->label, sizeof out->label, "built-in text");
    km_buf_free(&b);
    return rc;
}

int wl_text_read(struct wl_text *out, const struct wl_spec *s, const struct wl_gen_opts *o, int64_t need,
                 const struct tok *t, struct km_err *err)
{
    if (o->text == WL_TEXT_BUILTIN)
        return make_builtin(out, need, t, err);
    int rc = read_files(out, s, o, t, err);
    if (rc != KM_ENOENT || o->text != WL_TEXT_AUTO)
        return rc;
    km_free(out->ids.v);
    *out = (struct wl_text){0};
    return make_builtin(out, need, t, err);
}

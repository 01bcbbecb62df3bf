/* The words that prompts are cut from: text files named by a workload, or built-in text, as one list of tokens.
 *
 * A file is tokenised once, whole; everything after that is slices of the list. As Python reads text, line
 * ends of any kind become \n, and a byte order mark stays: the tokens are those vLLM's generator sees. */
#include "workloads/text.h"

#include "base/file.h"
#include "base/mem.h"
#include "workloads/builtin_text.h"

#include <stdio.h>
#include <string.h>

#define TEXT_MAX ((size_t)1 << 30)

/* The first of text_dir, the workload's folder, "." and "data" that has the file; *out is NULL when none has.
 */
static int find(const char *name, const struct wl_spec *s, const struct wl_gen_opts *o, char **out,
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
            return km_fail(err, KM_EFORMAT, "%s is not UTF-8 at byte %zu; convert it first", path, i);
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

int wl_text_from_files(struct wl_text *out, const struct wl_spec *s, const struct wl_gen_opts *o,
                  const struct tok *t, struct km_err *err)
{
    const cJSON *f;
    cJSON_ArrayForEach(f, cJSON_GetObjectItemCaseSensitive(s->json, "text_files"))
    {
        const char *name = f->valuestring, *slash = strrchr(name, '/');
        char *path;
        int rc = find(name, s, o, &path, err);
        if (!rc && !path)
            rc = km_fail(err, KM_ENOENT,
                         "there is no text file %.200s in %s%s%s, . or data; `make data` fetches the novel "
                         "pg1184.txt, or pass --text builtin",
                         name, o->text_dir ? o->text_dir : "", o->text_dir ? ", " : "", s->dir);
        if (!rc)
            rc = add_file(out, path, t, err);
        km_free(path);
        if (rc)
            return rc;
        size_t used = strlen(out->label);
        snprintf(out->label + used, sizeof out->label - used, "%s%s", used ? ", " : "",
                 slash ? slash + 1 : name);
    }
    return 0;
}

/* No vocabulary of English words comes near eight bytes a token, so one round is enough in practice; the
 * caller checks the count in any case. The text for a smaller need is a prefix of the text for a larger one. */
int wl_text_from_builtin(struct wl_text *out, int64_t need, const struct tok *t, struct km_err *err)
{
    if (need > (int64_t)(TEXT_MAX / 8))
        return km_fail(err, KM_ELIMIT,
                       "the workload needs %lld tokens of text; the built-in text goes up to %zu",
                       (long long)need, TEXT_MAX / 8);
    struct km_buf b = {0};
    int rc = wl_builtin_text(1, ((size_t)need / 65536 + 1) * 65536 * 8, &b, err);
    if (!rc)
        rc = tok_encode(t, b.data, b.len, false, &out->ids, err);
    snprintf(out->label, sizeof out->label, "built-in text");
    km_buf_free(&b);
    return rc;
}

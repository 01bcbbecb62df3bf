/* The workload file: which of the three kinds it is, and everything checked that can be checked without
 * a tokenizer. A spec that was read generates; what can still fail then is the text. */
#include "workloads/internal.h"

#include "base/args.h"
#include "base/file.h"
#include "base/mem.h"

#include <string.h>

#define FILE_MAX ((size_t)1 << 30)

static int read_multi_turn(struct wl_spec *s, struct km_err *err)
{
    int64_t n = 0;
    int rc = km_json_int(s->json, "num_conversations", true, 1, WL_MAX_CONVS, &n, err);
    const cJSON *files = NULL, *in = NULL, *out = NULL, *f;
    bool ignored;
    if (!rc)
        rc = km_json_item(s->json, "text_files", true, cJSON_Array, &files, err);
    if (!rc && !cJSON_GetArraySize(files))
        rc = km_fail(err, KM_EINVAL, "\"text_files\" is empty; name at least one text file");
    cJSON_ArrayForEach(f, files)
    {
        if (!rc && (!cJSON_IsString(f) || !*f->valuestring))
            rc = km_fail(err, KM_EINVAL, "\"text_files\" must be a list of file names");
    }
    if (!rc)
        rc = km_json_bool(s->json, "print_stats", false, &ignored, err);
    if (!rc)
        rc = km_json_item(s->json, "prompt_input", true, cJSON_Object, &in, err);
    if (!rc)
        rc = km_json_item(s->json, "prompt_output", true, cJSON_Object, &out, err);
    if (!rc)
        rc = wl_law_read(&s->turns, in, "prompt_input", "num_turns", true, err);
    if (!rc)
        rc = wl_law_read(&s->common, in, "prompt_input", "common_prefix_num_tokens", false, err);
    if (!rc)
        rc = wl_law_read(&s->prefix, in, "prompt_input", "prefix_num_tokens", true, err);
    if (!rc)
        rc = wl_law_read(&s->input, in, "prompt_input", "num_tokens", true, err);
    if (!rc)
        rc = wl_law_read(&s->output, out, "prompt_output", "num_tokens", true, err);
    s->kind = WL_MULTI_TURN;
    s->n = (int)n;
    return rc;
}

/* This kind is ours, so a key that nobody reads is a typing error and not an extension. */
static int check_random_keys(const cJSON *obj, struct km_err *err)
{
    static const char *const known[] = {"filetype",    "comment",    "input_len", "output_len", "num_prompts",
                                        "range_ratio", "prefix_len", "generator", "repeat_one"};
    const int n = sizeof known / sizeof *known;
    const cJSON *v;
    cJSON_ArrayForEach(v, obj)
    {
        int k = 0;
        while (k < n && strcmp(v->string, known[k]))
            k++;
        if (k < n)
            continue;
        const char *near = km_nearest(v->string, known, n);
        return km_fail(err, KM_EINVAL, "unknown key \"%.60s\" in a file of type random%s%s%s", v->string,
                       near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
    }
    return 0;
}

static int read_random(struct wl_spec *s, struct km_err *err)
{
    const int64_t most = 10000000;
    static const char *const generators[] = {"v0.10", "v0.11", "new"};
    const char *generator = "v0.11";
    int64_t n = 0;
    s->kind = WL_RANDOM;
    int rc = check_random_keys(s->json, err), g = 0;
    if (!rc)
        rc = km_json_int(s->json, "num_prompts", true, 1, WL_MAX_CONVS, &n, err);
    if (!rc)
        rc = km_json_int(s->json, "input_len", true, 0, most, &s->input_len, err);
    if (!rc)
        rc = km_json_int(s->json, "output_len", true, 1, most, &s->output_len, err);
    if (!rc)
        rc = km_json_int(s->json, "prefix_len", false, 0, most, &s->prefix_len, err);
    if (!rc)
        rc = km_json_num(s->json, "range_ratio", false, 0, 1, &s->range_ratio, err);
    if (!rc)
        rc = km_json_bool(s->json, "repeat_one", false, &s->repeat_one, err);
    if (!rc)
        rc = km_json_str(s->json, "generator", false, &generator, err);
    if (rc)
        return rc;
    if (s->range_ratio >= 1)
        return km_fail(err, KM_EINVAL, "\"range_ratio\" is 1; it must be less than 1");
    while (g < 3 && strcmp(generator, generators[g]))
        g++;
    if (g == 3)
        return km_fail(err, KM_EINVAL,
                       "\"generator\" is \"%.40s\"; it must be \"v0.10\", \"v0.11\" or \"new\"", generator);
    if (s->prefix_len + (int64_t)((double)s->input_len * (1 - s->range_ratio)) < 1)
        return km_fail(err, KM_EINVAL,
                       "\"input_len\" is %lld; with this range_ratio and prefix_len some prompts would be "
                       "empty, so make it larger",
                       (long long)s->input_len);
    s->random = (enum wl_random)g;
    s->n = (int)n;
    return 0;
}

static int read_object(struct wl_spec *s, const char *text, struct km_err *err)
{
    const char *type = NULL;
    int rc = km_json_str(s->json, "filetype", true, &type, err);
    if (rc)
        return rc;
    wl_note_integers(text, s->json);
    if (!strcmp(type, "generate_conversations"))
        return read_multi_turn(s, err);
    if (!strcmp(type, "random"))
        return read_random(s, err);
    return km_fail(err, KM_EINVAL,
                   "\"filetype\" is \"%.60s\"; it must be \"generate_conversations\" or \"random\"", type);
}

static int read_conversations(struct wl_spec *s, struct km_err *err)
{
    s->kind = WL_CONVERSATIONS;
    return wl_check_conversations(s->json, &s->n, err);
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
        if (!rc && cJSON_IsObject(s->json))
            rc = read_object(s, b.data, err);
        else if (!rc && cJSON_IsArray(s->json))
            rc = read_conversations(s, err);
        else if (!rc)
            rc = km_fail(err, KM_EINVAL, "a workload file holds an object, or an array of conversations");
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
    km_free(s);
}

enum wl_kind wl_spec_kind(const struct wl_spec *s)
{
    return s->kind;
}

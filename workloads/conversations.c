/* Conversations that the workload file itself holds:
 * [{"id": "...", "messages": [{"role": "user", "content": "..."}, ...]}, ...].
 *
 * The load client requests an answer for every user message, of the length that the file's answer has. So each user
 * message must be followed by an answer: roles alternate, user first, and the number of messages is even. */
#include "workloads/message.h"

#include "base/mem.h"
#include "base/sort.h"
#include "workloads/spec.h"

#include <string.h>

static int check_message(const cJSON *m, int i, struct km_err *err)
{
    const char *role = NULL, *content = NULL, *want = i % 2 ? "assistant" : "user";
    if (!cJSON_IsObject(m))
        return km_fail(err, KM_EINVAL, "a message must be an object with \"role\" and \"content\"");
    int rc = km_json_str(m, "role", true, &role, err);
    if (!rc)
        rc = km_json_str(m, "content", true, &content, err);
    if (rc)
        return rc;
    if (strcmp(role, want))
        return km_fail(err, KM_EINVAL,
                       "the role is \"%.40s\"; roles alternate, starting with user, so it must be \"%s\"", role, want);
    if (cJSON_GetArraySize(m) != 2)
        return km_fail(err, KM_EINVAL, "the message has %d keys; remove all but \"role\" and \"content\"",
                       cJSON_GetArraySize(m));
    return 0;
}

static int check_conversation(const cJSON *v, struct km_err *err)
{
    if (!cJSON_IsObject(v))
        return km_fail(err, KM_EINVAL, "a conversation must be an object with \"id\" and \"messages\"");
    if (cJSON_GetObjectItemCaseSensitive(v, "conversations"))
        return km_fail(err, KM_EINVAL,
                       "this is ShareGPT's own format (\"conversations\"); convert it to \"messages\" with "
                       "\"role\" and \"content\"");
    const char *id = NULL;
    const cJSON *msgs = NULL, *m;
    int rc = km_json_str(v, "id", true, &id, err), n = 0;
    if (!rc)
        rc = km_json_item(v, "messages", true, cJSON_Array, &msgs, err);
    if (rc)
        return rc;
    cJSON_ArrayForEach(m, msgs)
    {
        if ((rc = check_message(m, n++, err)))
            return km_context(err, "message %d", n - 1);
    }
    if (n == 0 || n % 2)
        return km_fail(err, KM_EINVAL,
                       "the number of messages is %d; every user message needs an answer after it, so the "
                       "number must be even and more than 0",
                       n);
    if (n > WL_MAX_MESSAGES)
        return km_fail(err, KM_ELIMIT,
                       "the number of messages is %d; at most %d are accepted, so split the conversation", n,
                       WL_MAX_MESSAGES);
    return 0;
}

static int check_ids(const cJSON *array, int n, struct km_err *err)
{
    const char **ids = km_reallocarray(NULL, (size_t)n, sizeof *ids);
    if (!ids)
        return km_fail(err, KM_ENOMEM, "out of memory for %d conversations", n);
    int rc = 0, i = 0;
    const cJSON *v;
    cJSON_ArrayForEach(v, array)
    {
        ids[i++] = cJSON_GetObjectItemCaseSensitive(v, "id")->valuestring;
    }
    km_sort_strings(ids, (size_t)n);
    for (i = 1; i < n && !rc; i++)
        if (!strcmp(ids[i - 1], ids[i]))
            rc = km_fail(err, KM_EINVAL, "the id \"%.80s\" occurs twice; ids must be unique", ids[i]);
    km_free(ids);
    return rc;
}

static int read(struct wl_spec *s, struct km_err *err)
{
    const cJSON *v;
    cJSON_ArrayForEach(v, s->json)
    {
        if (check_conversation(v, err))
            return km_context(err, "conversation %d", s->n);
        if (++s->n > WL_MAX_CONVS)
            return km_fail(err, KM_ELIMIT, "the file has more than %d conversations; split it", WL_MAX_CONVS);
    }
    if (s->n == 0)
        return km_fail(err, KM_EINVAL, "the array of conversations is empty; give at least one");
    s->n_max = s->n;
    return check_ids(s->json, s->n, err);
}

static int make_conversation(struct wl_conv *c, const cJSON *v, const struct tok *t, struct km_err *err)
{
    const cJSON *msgs = cJSON_GetObjectItemCaseSensitive(v, "messages"), *m;
    const char *id = cJSON_GetObjectItemCaseSensitive(v, "id")->valuestring;
    int rc = wl_conv_init(c, id, cJSON_GetArraySize(msgs), err), i = 0;
    if (rc)
        return rc;
    cJSON_ArrayForEach(m, msgs)
    {
        struct wl_msg *out = &c->msgs[i++];
        const char *content = cJSON_GetObjectItemCaseSensitive(m, "content")->valuestring;
        struct km_buf tmp = {0};
        out->len = strlen(content);
        content = km_json_nuls(content, &out->len, &tmp);
        out->text = content ? km_strndup(content, out->len) : NULL;
        km_buf_free(&tmp);
        if (!out->text)
            return km_fail(err, KM_ENOMEM, "out of memory copying conversations");
        out->n_tokens = -1;
        if (t && (rc = wl_msg_count_tokens(out, t, err)))
            return rc;
    }
    return 0;
}

static int generate(struct wl_set *set, const struct wl_spec *s, const struct wl_gen_opts *o, const struct tok *t,
                    struct km_err *err)
{
    (void)o;
    const cJSON *v = s->json->child;
    int rc = 0;
    for (int c = 0; c < set->n && !rc; c++, v = v->next)
        rc = make_conversation(&set->convs[c], v, t, err);
    return rc;
}

const struct wl_kind_ops wl_conversations_kind = {
    .name = "conversations",
    .seed_rules = WL_RULES_MULTI_TURN,
    .read = read,
    .generate = generate,
};

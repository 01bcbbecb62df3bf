#include "harness/client/target.h"

#include "base/clock.h"
#include "base/json.h"

#include <curl/curl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

enum { MAX_ANSWER = 64 << 20 };

int target_url(const struct target *t, const char *path, struct km_buf *out, struct km_err *err)
{
    const char *u = t->url ? t->url : "";
    size_t n = strlen(u);
    if (strncasecmp(u, "http://", 7) && strncasecmp(u, "https://", 8))
        return km_fail(err, KM_EINVAL, "\"%.200s\" is not the address of a server; write http://127.0.0.1:8000", u);
    while (n && u[n - 1] == '/')
        n--;
    if (n > 3 && !memcmp(u + n - 3, "/v1", 3))
        n -= 3;
    km_buf_put(out, u, n);
    km_buf_puts(out, path);
    return km_buf_ok(out) ? 0 : km_fail(err, KM_ENOMEM, "no memory for an address");
}

/* Appends one extra header in libcurl's form. */
static int put_extra_header(const char *header, struct km_buf *out, struct km_err *err)
{
    size_t name = strcspn(header, ":=");
    if (!name || !header[name] || strpbrk(header, "\r\n"))
        return km_fail(err, KM_EINVAL, "header \"%.100s\" is neither \"Name: value\" nor Name=value", header);
    const char *value = header + name + 1;
    value += strspn(value, " ");
    km_buf_put(out, header, name);
    km_buf_puts(out, *value ? ": " : ";"); /* for libcurl, "Name:" removes a header and "Name;" sends an empty one */
    km_buf_puts(out, value);
    return 0;
}

int target_headers(const struct target *t, struct curl_slist **out, struct km_err *err)
{
    /* With an empty Expect, libcurl does not wait for "100 Continue" before it sends a large body. */
    static const char *const fixed[] = {"Content-Type: application/json", "Expect:"};
    struct km_buf b = {0};
    int rc = 0;
    *out = NULL;
    for (int i = 0; !rc && i < 3 + t->headers.n; i++) {
        km_buf_clear(&b);
        if (i < 2)
            km_buf_puts(&b, fixed[i]);
        else if (i == 2) {
            if (!t->api_key)
                continue;
            km_buf_printf(&b, "Authorization: Bearer %s", t->api_key);
        } else
            rc = put_extra_header(t->headers.v[i - 3], &b, err);
        struct curl_slist *l = rc || !km_buf_ok(&b) ? NULL : curl_slist_append(*out, b.data);
        if (!rc && !l)
            rc = km_fail(err, KM_ENOMEM, "no memory for the request headers");
        if (!rc)
            *out = l;
    }
    km_buf_free(&b);
    if (rc) {
        curl_slist_free_all(*out);
        *out = NULL;
    }
    return rc;
}

static size_t collect(char *p, size_t size, size_t n, void *arg)
{
    struct km_buf *b = arg;
    if (b->len + size * n > MAX_ANSWER)
        return 0;
    km_buf_put(b, p, size * n);
    return km_buf_ok(b) ? size * n : 0;
}

static int perform(const struct target *t, const char *path, const char *body, double timeout_s, struct km_buf *out,
                   struct km_err *err)
{
    struct km_buf url = {0}, mine = {0};
    struct curl_slist *headers = NULL;
    char why[CURL_ERROR_SIZE] = "";
    long status = 0;
    int rc = target_url(t, path, &url, err);
    if (!rc)
        rc = target_headers(t, &headers, err);
    CURL *e = rc ? NULL : curl_easy_init();
    if (!rc && !e)
        rc = km_fail(err, KM_ENOMEM, "no memory for a request");
    if (!rc) {
        curl_easy_setopt(e, CURLOPT_URL, url.data);
        curl_easy_setopt(e, CURLOPT_HTTPHEADER, headers);
        curl_easy_setopt(e, CURLOPT_ERRORBUFFER, why);
        curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(e, CURLOPT_PROXY, "");
        curl_easy_setopt(e, CURLOPT_USERAGENT, "kvmark");
        curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, (long)(timeout_s * 1e3));
        curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, collect);
        curl_easy_setopt(e, CURLOPT_WRITEDATA, out ? out : &mine);
        if (body)
            curl_easy_setopt(e, CURLOPT_POSTFIELDS, body);
        CURLcode r = curl_easy_perform(e);
        if (r)
            rc = km_fail(err, KM_ENET, "%s %s: %s", body ? "POST" : "GET", url.data,
                         why[0] ? why : curl_easy_strerror(r));
        else
            curl_easy_getinfo(e, CURLINFO_RESPONSE_CODE, &status);
    }
    curl_easy_cleanup(e);
    curl_slist_free_all(headers);
    km_buf_free(&url);
    km_buf_free(&mine);
    return rc ? rc : (int)status;
}

int target_get(const struct target *target, const char *path, double timeout_s, struct km_buf *out, struct km_err *err)
{
    return perform(target, path, NULL, timeout_s, out, err);
}

int target_post(const struct target *target, const char *path, const char *body, double timeout_s, struct km_buf *out,
                struct km_err *err)
{
    return perform(target, path, body ? body : "", timeout_s, out, err);
}

int target_wait_ready(const struct target *target, double timeout_s, struct km_err *err)
{
    int64_t until = km_now_ns() + (int64_t)(timeout_s * 1e9);
    for (;;) {
        struct km_err last = {0};
        int status = target_get(target, "/health", 5, NULL, &last);
        if (status == 404 || status == 405)
            status = target_get(target, "/v1/models", 5, NULL, &last);
        if (status == 200)
            return 0;
        if (status < 0 && status != KM_ENET)
            return km_fail(err, status, "%s", last.msg);
        if (km_now_ns() >= until) {
            if (status > 0)
                snprintf(last.msg, sizeof last.msg, "it answers with HTTP %d", status);
            return km_fail(err, KM_ENET, "no server is ready at %.150s after %g s: %.250s", target->url, timeout_s,
                           last.msg);
        }
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
}

int target_model(const struct target *t, char *out, size_t size, struct km_err *err)
{
    struct km_buf body = {0}, names = {0};
    cJSON *v = NULL;
    bool found = false;
    int status = target_get(t, "/v1/models", 10, &body, err), rc = status < 0 ? status : 0;
    const cJSON *m, *data = NULL;
    if (status == 401 || status == 403)
        rc = km_fail(err, KM_ENET, "%s refuses the key (HTTP %d); give --api-key", t->url, status);
    if (!rc && status == 200 && km_json_parse(km_buf_str(&body), body.len, &v, NULL) == 0)
        data = cJSON_GetObjectItemCaseSensitive(v, "data");
    snprintf(out, size, "%s", t->model ? t->model : "");
    cJSON_ArrayForEach(m, data)
    {
        const char *id = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(m, "id"));
        if (!id)
            continue;
        if (!out[0])
            snprintf(out, size, "%s", id);
        found = found || !strcmp(out, id);
        km_buf_printf(&names, names.len ? ", %s" : "%s", id);
    }
    if (!rc && names.len && !found)
        rc = km_fail(err, KM_EINVAL, "%s does not serve model %.100s; it serves %.250s", t->url, out, names.data);
    else if (!rc && !out[0])
        rc = km_fail(err, KM_EINVAL, "%s lists no models; name the one to ask for with --model", t->url);
    else if (!rc && strlen(out) + 1 == size)
        rc = km_fail(err, KM_EINVAL, "the model's name is longer than %zu bytes", size - 2);
    cJSON_Delete(v);
    km_buf_free(&body);
    km_buf_free(&names);
    return rc;
}

int target_model_root(const struct target *target, struct km_buf *out, struct km_err *err)
{
    struct km_buf body = {0};
    cJSON *v = NULL;
    const cJSON *m;
    const char *root = NULL;
    int status = target_get(target, "/v1/models", 10, &body, err);
    if (status == 200 && km_buf_ok(&body))
        km_json_parse(body.data, body.len, &v, NULL);
    cJSON_ArrayForEach(m, cJSON_GetObjectItemCaseSensitive(v, "data"))
    {
        const char *id = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(m, "id"));
        if (!root && id && (!target->model || !strcmp(id, target->model)))
            root = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(m, "root"));
    }
    bool found = root && *root;
    if (found)
        km_buf_puts(out, root);
    cJSON_Delete(v);
    km_buf_free(&body);
    if (status < 0)
        return status;
    if (!found)
        return km_fail(err, KM_ENOENT, "GET %s/v1/models reports no root for the model", target->url);
    return km_buf_ok(out) ? 0 : km_fail(err, KM_ENOMEM, "no memory for the path of a model");
}

void target_version(const struct target *t, char *out, size_t size)
{
    struct km_buf body = {0};
    cJSON *v = NULL;
    out[0] = 0;
    if (target_get(t, "/version", 10, &body, NULL) == 200 &&
        km_json_parse(km_buf_str(&body), body.len, &v, NULL) == 0) {
        const char *s = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(v, "version"));
        snprintf(out, size, "%s", s ? s : "");
    }
    cJSON_Delete(v);
    km_buf_free(&body);
}

/* The Prometheus text format, as much of it as counters and gauges need: "name{labels} value timestamp".
 *
 * A name's JSON item is found by a hash table (open addressing), because a lookup in a cJSON object is linear and a
 * server may have 100,000 names. */
#include "harness/client/scrape.h"

#include "base/buf.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

struct index {
    cJSON **slots; /* [cap] items by the hash of their names; NULL: free */
    size_t n, cap; /* cap is 0 or a power of two, and at least 2 n */
};

/* The slot that holds the item of this name, or the free slot where that item belongs. cap must not be 0. */
static cJSON **index_slot(const struct index *x, const char *name, size_t len)
{
    size_t i = XXH3_64bits(name, len) & (x->cap - 1);
    while (x->slots[i] && (strncmp(x->slots[i]->string, name, len) || x->slots[i]->string[len]))
        i = (i + 1) & (x->cap - 1);
    return &x->slots[i];
}

static bool index_add(struct index *x, cJSON *item)
{
    if (2 * (x->n + 1) > x->cap) {
        struct index bigger = {.n = x->n, .cap = x->cap ? 2 * x->cap : 256};
        if (!(bigger.slots = km_calloc(bigger.cap, sizeof *bigger.slots)))
            return false;
        for (size_t i = 0; i < x->cap; i++)
            if (x->slots[i])
                *index_slot(&bigger, x->slots[i]->string, strlen(x->slots[i]->string)) = x->slots[i];
        km_free(x->slots);
        *x = bigger;
    }
    *index_slot(x, item->string, strlen(item->string)) = item;
    x->n++;
    return true;
}

static cJSON *index_find(const struct index *x, const char *name)
{
    return x->cap ? *index_slot(x, name, strlen(name)) : NULL;
}

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && !strcmp(s + n - m, tail);
}

/* Parses one line, which is modified, and adds its value. False: no memory. */
static bool add_line(cJSON *out, struct index *x, char *line)
{
    char *name_end = line + strcspn(line, "{ ");
    char *value = *name_end == '{' ? strrchr(name_end, '}') : name_end;
    if (*line == '#' || name_end == line || !value || !*value)
        return true;
    value++;
    *name_end = 0;
    char *end;
    double v = strtod(value, &end);
    if (end == value || !isfinite(v) || ends_with(line, "_bucket"))
        return true;
    cJSON *item = index_find(x, line);
    if (item) {
        cJSON_SetNumberHelper(item, item->valuedouble + v);
        return true;
    }
    item = cJSON_AddNumberToObject(out, line, v);
    return item && index_add(x, item);
}

cJSON *scrape_parse(const char *text, size_t len)
{
    struct index names = {0};
    char *line = km_malloc(SCRAPE_MAX_LINE + 1);
    cJSON *out = line ? cJSON_CreateObject() : NULL;
    bool ok = out != NULL;
    for (const char *p = text, *end = text + len; ok && p < end;) {
        const char *lf = memchr(p, '\n', (size_t)(end - p)), *stop = lf ? lf : end;
        size_t n = (size_t)(stop - p);
        if (n <= SCRAPE_MAX_LINE) {
            memcpy(line, p, n);
            line[n] = 0;
            ok = add_line(out, &names, line);
        }
        p = lf ? lf + 1 : end;
    }
    km_free(line);
    km_free(names.slots);
    if (!ok) {
        cJSON_Delete(out);
        return NULL;
    }
    return out;
}

cJSON *scrape_metrics(const struct target *target)
{
    struct km_buf text = {0};
    bool good = target_get(target, "/metrics", 5, &text, NULL) == 200 && km_buf_ok(&text);
    cJSON *out = good ? scrape_parse(km_buf_str(&text), text.len) : NULL;
    km_buf_free(&text);
    return out;
}

cJSON *scrape_difference(const cJSON *before, const cJSON *after)
{
    struct index names = {0};
    cJSON *out = after ? cJSON_CreateObject() : NULL, *item;
    bool ok = out != NULL;
    for (item = before ? before->child : NULL; ok && item; item = item->next)
        ok = index_add(&names, item);
    for (item = after ? after->child : NULL; ok && item; item = item->next) {
        const cJSON *was = index_find(&names, item->string);
        bool counter =
            ends_with(item->string, "_total") || ends_with(item->string, "_sum") || ends_with(item->string, "_count");
        ok = cJSON_AddNumberToObject(out, item->string, item->valuedouble - (counter && was ? was->valuedouble : 0));
    }
    km_free(names.slots);
    if (!ok) {
        cJSON_Delete(out);
        return NULL;
    }
    return out;
}

/* The Prometheus text format, as much of it as counters and gauges need: "name{labels} value timestamp".
 *
 * A name's JSON item is found by a hash table (open addressing), because a lookup in a cJSON object is linear and a
 * server may have 100,000 names. */
#include "harness/client/scrape.h"

#include "base/buf.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
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

/* One sample of the text: "name{labels} value". */
struct sample {
    const char *name, *labels; /* labels: the text between the braces; "" if there are none */
    double v;
};

/* Reads a line, which is modified. False: it is no sample that counts. */
static bool read_sample(char *line, struct sample *out)
{
    char *name_end = line + strcspn(line, "{ ");
    char *value = *name_end == '{' ? strrchr(name_end, '}') : name_end, *end;
    if (*line == '#' || name_end == line || !value || !*value)
        return false;
    *out = (struct sample){.name = line, .labels = value > name_end ? name_end + 1 : ""};
    *value = *name_end = 0;
    out->v = strtod(value + 1, &end);
    return end != value + 1 && isfinite(out->v) && !ends_with(line, "_bucket");
}

/* Calls add for each sample of the text, until it returns false. False: there is no memory. */
static bool for_samples(const char *text, size_t len, bool (*add)(void *arg, const struct sample *s), void *arg)
{
    char *line = km_malloc(SCRAPE_MAX_LINE + 1);
    bool ok = line != NULL;
    for (const char *p = text, *end = text + len; ok && p < end;) {
        const char *lf = memchr(p, '\n', (size_t)(end - p)), *stop = lf ? lf : end;
        size_t n = (size_t)(stop - p);
        struct sample s;
        if (n <= SCRAPE_MAX_LINE) {
            memcpy(line, p, n);
            line[n] = 0;
            ok = !read_sample(line, &s) || add(arg, &s);
        }
        p = lf ? lf + 1 : end;
    }
    km_free(line);
    return ok;
}

struct sums {
    cJSON *out;
    struct index names;
};

static bool add_to_sum(void *arg, const struct sample *s)
{
    struct sums *t = arg;
    cJSON *item = index_find(&t->names, s->name);
    if (item) {
        cJSON_SetNumberHelper(item, item->valuedouble + s->v);
        return true;
    }
    item = cJSON_AddNumberToObject(t->out, s->name, s->v);
    return item && index_add(&t->names, item);
}

cJSON *scrape_parse(const char *text, size_t len)
{
    struct sums t = {.out = cJSON_CreateObject()};
    bool ok = t.out && for_samples(text, len, add_to_sum, &t);
    km_free(t.names.slots);
    if (!ok) {
        cJSON_Delete(t.out);
        return NULL;
    }
    return t.out;
}

/* Copies the value of the label `tier`, up to size - 1 characters. False: there is no such label. */
static bool find_tier(const char *labels, char *out, size_t size)
{
    const char *at = strncmp(labels, "tier=\"", 6) ? strstr(labels, ",tier=\"") : labels;
    if (!at)
        return false;
    at = strchr(at, '"') + 1;
    size_t n = strcspn(at, "\"");
    snprintf(out, size, "%.*s", (int)(n < size ? n : size - 1), at);
    return n > 0;
}

static bool add_to_tier(void *arg, const struct sample *s)
{
    static const char prefix[] = "kvmark_cache_tier_";
    enum { MOST = 64, NAMES = 256 }; /* tiers, and names of a tier: the search is linear, and any server may answer */
    cJSON *out = arg;
    char tier[32];
    if (strncmp(s->name, prefix, sizeof prefix - 1) || !find_tier(s->labels, tier, sizeof tier))
        return true;
    cJSON *of = cJSON_GetObjectItemCaseSensitive(out, tier);
    if (!of && cJSON_GetArraySize(out) < MOST && !(of = cJSON_AddObjectToObject(out, tier)))
        return false;
    return !of || cJSON_GetArraySize(of) >= NAMES || cJSON_AddNumberToObject(of, s->name + sizeof prefix - 1, s->v);
}

cJSON *scrape_tiers(const char *text, size_t len)
{
    cJSON *out = cJSON_CreateObject();
    if (!out || !for_samples(text, len, add_to_tier, out)) {
        cJSON_Delete(out);
        return NULL;
    }
    return out;
}

cJSON *scrape_metrics(const struct target *target, cJSON **tiers)
{
    struct km_buf text = {0};
    bool good = target_get(target, "/metrics", 5, &text, NULL) == 200 && km_buf_ok(&text);
    cJSON *out = good ? scrape_parse(km_buf_str(&text), text.len) : NULL;
    if (tiers)
        *tiers = good ? scrape_tiers(km_buf_str(&text), text.len) : NULL;
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
        if (cJSON_IsObject(item)) {
            cJSON *inner = scrape_difference(was, item);
            ok = inner && cJSON_AddItemToObject(out, item->string, inner);
            continue;
        }
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

/* Reading the Prometheus text format, as much of it as counters and gauges need. */
#include "harness/client/scrape.h"

#include "base/buf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && !strcmp(s + n - m, tail);
}

static void add_line(cJSON *out, char *line)
{
    if (*line == '#')
        return;
    char *name_end = line + strcspn(line, "{ ");
    char *value = *name_end == '{' ? strrchr(name_end, '}') : name_end;
    if (!value || !*value)
        return;
    value++;
    *name_end = 0;
    char *end;
    double v = strtod(value, &end);
    if (end == value || !isfinite(v) || ends_with(line, "_bucket"))
        return;
    cJSON *have = cJSON_GetObjectItemCaseSensitive(out, line);
    if (have)
        cJSON_SetNumberHelper(have, have->valuedouble + v);
    else
        cJSON_AddNumberToObject(out, line, v);
}

cJSON *scrape_metrics(const struct target *target)
{
    struct km_buf text = {0};
    cJSON *out = NULL;
    if (target_get(target, "/metrics", 5, &text, NULL) == 200 && km_buf_ok(&text) && (out = cJSON_CreateObject())) {
        char *save = NULL;
        for (char *line = strtok_r(text.data, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
            add_line(out, line);
    }
    km_buf_free(&text);
    return out;
}

cJSON *scrape_difference(const cJSON *before, const cJSON *after)
{
    cJSON *out = after ? cJSON_CreateObject() : NULL;
    const cJSON *item;
    cJSON_ArrayForEach(item, after)
    {
        const cJSON *was = cJSON_GetObjectItemCaseSensitive(before, item->string);
        bool counter =
            ends_with(item->string, "_total") || ends_with(item->string, "_sum") || ends_with(item->string, "_count");
        cJSON_AddNumberToObject(out, item->string, item->valuedouble - (counter && was ? was->valuedouble : 0));
    }
    return out;
}

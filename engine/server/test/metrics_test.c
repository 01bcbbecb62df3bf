/* The body of /metrics: the cache layer's totals, and its rows for single tiers. */
#include "base/test/test.h"

#include "engine/server/metrics.h"

#include <string.h>

static void add_row(struct kv_port_stats *kv, const char *tier, const char *name, bool gauge, double value)
{
    kv->rows[kv->n_rows++] =
        (struct kv_stat_row){.tier = tier, .name = name, .help = "One sentence.", .gauge = gauge, .value = value};
}

static void expect(const struct km_buf *b, const char *line)
{
    const char *at = strstr(km_buf_str(b), line);
    if (!at)
        fail_msg("no \"%s\" in:\n%s", line, km_buf_str(b));
    if (strstr(at + 1, line))
        fail_msg("\"%s\" occurs twice", line);
}

static void the_cache_layer_has_totals_and_tiers(void **state)
{
    (void)state;
    static const struct met m;
    struct eng_opts opts = {.block_size = 16};
    struct http_stats http = {.connections = 1};
    struct met_facts f = {.model = "m\"1", .device = "cpu", .kv = "none", .opts = &opts, .http = &http};
    struct kv_port_stats *kv = &f.stats.kv;
    struct km_buf b = {0};
    kv->lookup_tokens = 40;
    kv->hit_tokens = 30;
    kv->corrupt_chunks = 2;
    add_row(kv, "dram", "hit_tokens", false, 10);
    add_row(kv, "dram", "chunks", true, 3);
    add_row(kv, "disk", "chunks", true, 5.5);
    add_row(kv, "disk", "hit_tokens", false, 20);
    met_write(&m, &f, &b);
    expect(&b, "\nkvmark_cache_hit_tokens_total{model_name=\"m\\\"1\"} 30\n");
    expect(&b, "\nkvmark_cache_corrupt_chunks_total{model_name=\"m\\\"1\"} 2\n");
    expect(&b, "\nvllm:external_prefix_cache_queries_total{model_name=\"m\\\"1\"} 40\n");
    expect(&b, "\nvllm:external_prefix_cache_hits_total{model_name=\"m\\\"1\"} 30\n");
    /* A family has its help and type once, and its samples follow at once. */
    expect(&b, "\n# HELP kvmark_cache_tier_hit_tokens_total One sentence.\n"
               "# TYPE kvmark_cache_tier_hit_tokens_total counter\n"
               "kvmark_cache_tier_hit_tokens_total{model_name=\"m\\\"1\",tier=\"dram\"} 10\n"
               "kvmark_cache_tier_hit_tokens_total{model_name=\"m\\\"1\",tier=\"disk\"} 20\n#");
    expect(&b, "\n# HELP kvmark_cache_tier_chunks One sentence.\n# TYPE kvmark_cache_tier_chunks gauge\n"
               "kvmark_cache_tier_chunks{model_name=\"m\\\"1\",tier=\"dram\"} 3\n"
               "kvmark_cache_tier_chunks{model_name=\"m\\\"1\",tier=\"disk\"} 5.5\n#");
    expect(&b, "# HELP kvmark_cache_tier_chunks ");

    /* Without a cache layer, the totals are 0 and there are no tiers. */
    *kv = (struct kv_port_stats){0};
    km_buf_clear(&b);
    met_write(&m, &f, &b);
    expect(&b, "\nkvmark_cache_hit_tokens_total{model_name=\"m\\\"1\"} 0\n");
    assert_null(strstr(km_buf_str(&b), "tier"));
    km_buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_cache_layer_has_totals_and_tiers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

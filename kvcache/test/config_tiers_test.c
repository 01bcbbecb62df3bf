/* Tiers in a configuration: which YAML keys and which elements of a specification reach them, whether they are enabled,
 * and what the description says. The registry of this test has two tiers of its own, so that every case can occur. */
#include "base/test/test.h"

#include "base/file.h"
#include "kvcache/kvcache.h"
#include "kvcache/pool.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GIB ((int64_t)1 << 30)

/* "shelf=PLACE:GIB": keys local_disk and max_local_disk_size; incomplete without a size. */
struct shelf {
    char place[64];
    int gib;
};

static void shelf_defaults(void *config)
{
    *(struct shelf *)config = (struct shelf){.gib = 0};
}

static int shelf_set_place(void *config, const char *key, const char *value, struct km_err *err)
{
    struct shelf *s = config;
    if (strlen(value) >= sizeof s->place)
        return km_fail(err, KM_EINVAL, "%s is too long", key);
    strcpy(s->place, value);
    return 0;
}

static int shelf_set_size(void *config, const char *key, const char *value, struct km_err *err)
{
    ((struct shelf *)config)->gib = atoi(value);
    return atoi(value) > 0 ? 0 : km_fail(err, KM_EINVAL, "%s is \"%s\"; it must be a number", key, value);
}

static int shelf_parse(void *config, const char *text, struct km_err *err)
{
    struct shelf *s = config;
    if (sscanf(text, "%63[^:]:%d", s->place, &s->gib) < 1)
        return km_fail(err, KM_EINVAL, "\"%s\" names no place; write shelf=PLACE:GIB", text);
    return 0;
}

static int shelf_enabled(const void *config, bool *on, struct km_err *err)
{
    const struct shelf *s = config;
    *on = *s->place;
    return *s->place && s->gib < 1 ? km_fail(err, KM_EINVAL, "shelf %s has no size", s->place) : 0;
}

static void shelf_describe(const void *config, char *out, size_t size)
{
    const struct shelf *s = config;
    snprintf(out, size, "shelf=%s:%dGiB", s->place, s->gib);
}

static void shelf_plan(const void *config, const struct kvc_geometry *g, struct kvc_tier_plan *out)
{
    out->capacity = ((const struct shelf *)config)->gib * GIB;
    out->host_bytes = out->capacity / (int64_t)(g->payload_bytes + g->header_bytes) * 64;
}

static const struct kvc_tier_key shelf_keys[] = {{"local_disk", shelf_set_place},
                                                 {"max_local_disk_size", shelf_set_size}};
static const struct kvc_tier_ops shelf = {.name = "shelf",
                                          .scheme = "shelf=",
                                          .usage = "shelf=PLACE:GIB",
                                          .defaults = shelf_defaults,
                                          .keys = shelf_keys,
                                          .n_keys = 2,
                                          .parse = shelf_parse,
                                          .enabled = shelf_enabled,
                                          .describe = shelf_describe,
                                          .plan = shelf_plan};

/* "cloud://PASSWORD@HOST": key remote_url, enabled by a host. */
struct cloud {
    char host[64];
};

static void cloud_defaults(void *config)
{
    *(struct cloud *)config = (struct cloud){.host = ""};
}

static int cloud_parse(void *config, const char *text, struct km_err *err)
{
    (void)err;
    const char *at = strchr(text, '@');
    snprintf(((struct cloud *)config)->host, 64, "%s", at ? at + 1 : text);
    return 0;
}

static int cloud_set(void *config, const char *key, const char *value, struct km_err *err)
{
    (void)key;
    return strncmp(value, "cloud://", 8) ? 1 : cloud_parse(config, value + 8, err);
}

static int cloud_enabled(const void *config, bool *on, struct km_err *err)
{
    (void)err;
    *on = *((const struct cloud *)config)->host;
    return 0;
}

static void cloud_describe(const void *config, char *out, size_t size)
{
    snprintf(out, size, "cloud://%s", ((const struct cloud *)config)->host);
}

static const struct kvc_tier_key cloud_keys[] = {{"remote_url", cloud_set}, {"cloud_zone", cloud_set}};
static const struct kvc_tier_ops cloud = {.name = "cloud",
                                          .scheme = "cloud://",
                                          .usage = "cloud://[PASSWORD@]HOST",
                                          .defaults = cloud_defaults,
                                          .keys = cloud_keys,
                                          .n_keys = 2,
                                          .parse = cloud_parse,
                                          .enabled = cloud_enabled,
                                          .describe = cloud_describe};

const struct kvc_tier_ops *kvc_tier_at(int i)
{
    return i == 0 ? &shelf : i == 1 ? &cloud : NULL;
}

static char path[64];

static int read_file(const char *text, struct kvc_config *c, struct km_buf *w, struct km_err *err)
{
    assert_int_equal(km_file_write(path, text, strlen(text), NULL), 0);
    *c = kvc_defaults();
    km_buf_clear(w);
    *err = (struct km_err){0};
    return kvc_config_yaml(path, c, w, err);
}

static void files_reach_the_tiers(void **state)
{
    (void)state;
    static const struct {
        const char *text, *described, *warns;
    } t[] = {
        {"chunk_size: 64\n", "dram=5GiB, chunk 64", ""},
        {"local_disk: /kv\nmax_local_disk_size: 20\n", "dram=5GiB, shelf=/kv:20GiB, chunk 256", ""},
        {"max_local_disk_size: 20\nlocal_disk: '/kv'\n", "dram=5GiB, shelf=/kv:20GiB, chunk 256", ""},
        {"local_cpu: false\nlocal_disk: /kv\nmax_local_disk_size: 20\n", "shelf=/kv:20GiB, staging 5GiB, chunk 256",
         ""},
        {"local_cpu: false\nmax_local_cpu_size: 1\nremote_url: cloud://secret@h\n",
         "cloud://h, staging 1GiB, chunk 256", ""},
        /* the order of the registry, not of the file */
        {"remote_url: cloud://h\nlocal_disk: /kv\nmax_local_disk_size: 1\n",
         "dram=5GiB, shelf=/kv:1GiB, cloud://h, chunk 256", ""},
        /* a size alone names no place, and a null place is none */
        {"max_local_disk_size: 20\n", "dram=5GiB, chunk 256", ""},
        {"local_disk: null\nremote_url:\n", "dram=5GiB, chunk 256", ""},
        {"remote_url: other://h\nremote_serde: naive\n", "dram=5GiB, chunk 256",
         "not supported yet: this value of remote_url\nnot supported yet: remote_serde\n"},
        {"local_cpu: false\nlocal_disk: ~\n", "no tier, chunk 256",
         "local_cpu: false leaves no tier, so nothing is cached\n"},
    };
    struct kvc_config c;
    struct km_buf w = {0}, d = {0};
    struct km_err err;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        if (read_file(t[i].text, &c, &w, &err))
            fail_msg("row %zu: %s", i, err.msg);
        km_buf_clear(&d);
        kvc_describe(&c, &d);
        assert_string_equal(km_buf_str(&d), t[i].described);
        assert_string_equal(km_buf_str(&w), t[i].warns);
        assert_int_equal(kvc_config_on(&c), !strstr(t[i].described, "no tier"));
    }
    km_buf_free(&w);
    km_buf_free(&d);
}

static void bad_files_are_refused(void **state)
{
    (void)state;
    static const char *const t[][2] = {
        {"local_disk: /kv\n", "shelf /kv has no size"},
        {"local_disk: /kv\nmax_local_disk_size: none of it\n", ", line 2: max_local_disk_size is \"none of it\""},
        {"local_disk: [/kv]\n", "local_disk is a list; it must be one plain value"},
        {"local_disk: /kv\nmax_local_disk_size: 1\nlocal_cpu: false\nmax_local_cpu_size: 0\n",
         "chunks of the shelf tier pass through host memory"},
        {"cloud_zoned: x\n", "did you mean \"cloud_zone\"?"}};
    struct kvc_config c;
    struct km_buf w = {0};
    struct km_err err;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        if (!read_file(t[i][0], &c, &w, &err))
            fail_msg("row %zu was accepted: %s", i, t[i][0]);
        if (!strstr(err.msg, t[i][1]) || !strstr(err.msg, path))
            fail_msg("row %zu: %s", i, err.msg);
        assert_int_equal(c.n_tiers, 0);
    }
    km_buf_free(&w);
}

static void specifications_reach_the_tiers(void **state)
{
    (void)state;
    static const char *const good[][2] = {
        {"dram=5GiB,shelf=/kv:20", "dram=5GiB, shelf=/kv:20GiB, chunk 256"},
        {"shelf=/kv:20,dram=512MiB", "dram=512MiB, shelf=/kv:20GiB, chunk 256"},
        {"shelf=/kv:20", "shelf=/kv:20GiB, staging 2GiB, chunk 256"},
        {"cloud://secret@h,shelf=/kv:1", "cloud://h, shelf=/kv:1GiB, staging 2GiB, chunk 256"}};
    static const char *const bad[][2] = {
        {"shelf=", "\"\" names no place"},
        {"shelf=/kv", "shelf /kv has no size"},
        {"cloud://", "describes no tier; write cloud://[PASSWORD@]HOST"},
        {"shelf=/a:1,shelf=/b:1", "shelf= occurs twice; give one shelf tier"},
        {"dram=1GiB,shelves=/a:1", "a list of: dram=SIZE, shelf=PLACE:GIB, cloud://[PASSWORD@]HOST"},
        {"dram=1GiB,none", "\"none\" is not a cache tier"}};
    struct kvc_config c;
    struct km_buf d = {0};
    struct km_err err;
    bool off;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        c = kvc_defaults();
        if (kvc_config_spec(good[i][0], &c, &off, &err))
            fail_msg("row %zu: %s", i, err.msg);
        km_buf_clear(&d);
        kvc_describe(&c, &d);
        assert_string_equal(km_buf_str(&d), good[i][1]);
        assert_false(off);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        c = kvc_defaults();
        assert_int_equal(kvc_config_spec(bad[i][0], &c, &off, &err), KM_EINVAL);
        if (!strstr(err.msg, bad[i][1]))
            fail_msg("\"%s\": %s", bad[i][0], err.msg);
        assert_true(c.local_cpu && !c.n_tiers);
    }
    /* A specification is complete: it replaces the tiers that c had. */
    c = kvc_defaults();
    assert_int_equal(kvc_config_spec("shelf=/kv:20", &c, &off, &err), 0);
    assert_int_equal(kvc_config_spec("dram=1GiB", &c, &off, &err), 0);
    assert_true(c.local_cpu && !c.n_tiers && c.max_local_cpu == GIB);
    km_buf_free(&d);
}

static void a_limit_of_the_loads_is_described(void **state)
{
    (void)state;
    struct kvc_config c = kvc_defaults();
    struct km_buf d = {0};
    c.throttle = 5000000000;
    kvc_describe(&c, &d);
    assert_string_equal(km_buf_str(&d), "dram=5GiB, chunk 256, loads at most 5GB/s");
    km_buf_clear(&d);
    c.throttle = 5 * GIB;
    kvc_describe(&c, &d);
    assert_string_equal(km_buf_str(&d), "dram=5GiB, chunk 256, loads at most 5GiB/s");
    km_buf_free(&d);
}

static void memory_is_planned(void **state)
{
    (void)state;
    struct kv_geom geom = {.n_layers = 4, .n_kv_heads = 2, .head_dim = 64, .block_size = 16, .dtype = KM_F32,
                           .layout = 1, .rope_theta = 1e6, .n_pages = 100};
    geom.page_bytes = 4 * 2 * 2 * 16 * 64 * 4;
    struct kvc_config c = kvc_defaults();
    struct kvc_plan p;
    struct km_err err;
    bool off;
    assert_int_equal(kvc_config_spec("dram=64MiB,shelf=/kv:1", &c, &off, &err), 0);
    assert_int_equal(kvc_plan(&c, &geom, &p, &err), 0);
    assert_int_equal(p.payload_bytes, 16 * geom.page_bytes);
    int64_t slot = (int64_t)(p.payload_bytes + p.header_bytes);
    assert_true(p.slots * slot <= 64 << 20 && (p.slots + 1) * slot > 64 << 20);
    assert_true(p.index_bytes >= p.slots * (int64_t)sizeof(struct km_digest));
    assert_int_equal(p.tier[0].capacity, GIB);
    assert_int_equal(p.tier[0].host_bytes, GIB / slot * 64);
    /* As many slots as the pool would have. */
    struct kvc_geometry g;
    struct kvc_pool *pool;
    assert_int_equal(kvc_geometry_init(&g, &geom, c.chunk_size, true, &err), 0);
    assert_int_equal(kvc_pool_open(&pool, &g, c.max_local_cpu, "/nowhere", KVC_SLAB, &err), 0);
    assert_int_equal(p.slots, kvc_pool_slots(pool));
    kvc_pool_close(pool);

    c.max_local_cpu = slot - 1;
    assert_int_equal(kvc_plan(&c, &geom, &p, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "one chunk of 256 tokens"));
    c.chunk_size = 100;
    assert_int_equal(kvc_plan(&c, &geom, &p, &err), KM_EINVAL);
}

static int setup(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/kvc_config_tiers_test.%d.yaml", (int)getpid());
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_reach_the_tiers),
        cmocka_unit_test(bad_files_are_refused),
        cmocka_unit_test(specifications_reach_the_tiers),
        cmocka_unit_test(a_limit_of_the_loads_is_described),
        cmocka_unit_test(memory_is_planned),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

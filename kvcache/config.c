/* Reading the configuration of a cache: LMCache's YAML file, or a one-line specification of tiers.
 *
 * A YAML key is looked up in three places: `served` has the keys of the layer itself with their setters, each
 * registered tier has a table of its own keys (tier.h), and `known` has LMCache's keys. A key that is only in `known`
 * gives a warning. A file made for LMCache is therefore read as it is, and a misspelt key is an error instead of a
 * silent default. Values are scalars; quotes around them make no difference, as in LMCache. */
#include "base/args.h"
#include "base/file.h"
#include "base/mem.h"
#include "kvcache/geometry.h"
#include "kvcache/kvcache.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <yaml.h>

#define GIB ((int64_t)1 << 30)
#define MAX_GIB 1048576
#define MAX_FILE ((size_t)1 << 20) /* bytes */
#define MAX_BRACKETS 1000          /* libyaml takes time that grows with the square of the nesting */
#define MAX_KEYS 1000
#define MAX_TIER_KEYS 64           /* considered as corrections of a misspelt key */
#define SIZE(a) ((int)(sizeof(a) / sizeof *(a)))

static const char dram_scheme[] = "dram="; /* host memory, which is not a tier behind tier.h */

/* Keys of old and new versions of LMCache that the layer itself does not serve. A tier may serve some of them. A
 * trailing * matches any ending. */
static const char *const known[] = {
    "local_cpu_use_hugepages", "reserve_local_cpu_size", "local_disk", "local_disk_path_sharding",
    "max_local_disk_size", "remote_url", "remote_serde", "cost_aware_half_life_seconds", "cost_aware_ewma_alpha",
    "pre_caching_hash_algorithm", "use_layerwise", "min_retrieve_tokens", "blocking_timeout_secs",
    "lookup_timeout_ms", "enable_async_loading", "priority_limit", "hit_miss_ratio", "external_lookup_client",
    "enable_scheduler_bypass_lookup", "lookup_server_worker_ids", "store_location", "retrieve_locations",
    "numa_mode", "py_enable_gc", "pin_timeout_sec", "pin_check_interval_sec", "use_gpu_connector_v3",
    "enable_kv_events", "lmcache_instance_id", "extra_config",
    /* memory pool that grows */
    "enable_lazy_memory_allocator", "lazy_memory_initial_ratio", "lazy_memory_expand_trigger_ratio",
    "lazy_memory_step_ratio", "lazy_memory_safe_size",
    /* blending */
    "enable_blending", "blend_recompute_ratio", "blend_recompute_ratios", "blend_check_layers", "blend_thresholds",
    "blend_min_tokens", "blend_special_str",
    /* disaggregated prefill */
    "enable_pd", "enable_nixl", "enable_xpyd", "pd_role", "pd_buffer_size", "pd_buffer_device", "pd_peer_host",
    "pd_peer_init_port", "pd_peer_alloc_port", "pd_peer_query_port", "pd_proxy_host", "pd_proxy_port",
    "pd_backend_mode", "pd_allocation_timeout_sec", "pd_shutdown_timeout_sec", "pd_max_prefill_len",
    "pd_skip_proxy_notification", "pd_bidirectional", "transfer_channel", "nixl_*",
    /* peer-to-peer sharing, and the controller */
    "enable_p2p", "p2p_host", "p2p_init_ports", "p2p_lookup_ports", "lookup_url", "distributed_url",
    "enable_controller", "controller_url", "controller_pull_url", "controller_reply_url", "lmcache_worker_ports",
    "lmcache_worker_ids", "lmcache_worker_heartbeat_time", "lmcache_worker_heartbeat_delay_time", "mp_host",
    "mp_port",
    /* other storage back ends */
    "gds_path", "gds_buffer_size", "cufile_buffer_size", "use_gds", "gds_backend", "maru_path", "maru_pool_size",
    "weka_path",
    /* server, plugins, statistics */
    "internal_api_server_*", "script_allowed_imports", "runtime_plugin_locations", "storage_plugins",
    "remote_storage_plugins", "enable_chunk_statistics", "chunk_statistics_*", "enable_hidden_state_cache",
    "max_hidden_state_cpu_size"};

struct kvc_config kvc_defaults(void)
{
    return (struct kvc_config){.chunk_size = 256, .local_cpu = true, .max_local_cpu = 5 * GIB, .policy = KVC_LRU};
}

static bool is_known(const char *key)
{
    for (int i = 0; i < SIZE(known); i++) {
        size_t n = strcspn(known[i], "*");
        if (known[i][n] ? !strncmp(key, known[i], n) : !strcmp(key, known[i]))
            return true;
    }
    return false;
}

static bool is_null(const char *v)
{
    return !*v || !strcmp(v, "~") || !strcasecmp(v, "null") || !strcasecmp(v, "none");
}

/* One "key: value" line of a served key; the value is not null. */
struct setting {
    const char *key, *value;
    struct kvc_config *c; /* gets the value */
    struct km_err *err;
};

static int read_bool(const struct setting *s, bool *out)
{
    static const char *const yes[] = {"true", "yes", "on", "y", "1"};
    static const char *const no[] = {"false", "no", "off", "n", "0"};
    for (int i = 0; i < SIZE(yes); i++)
        if (!strcasecmp(s->value, yes[i]) || !strcasecmp(s->value, no[i])) {
            *out = !strcasecmp(s->value, yes[i]);
            return 0;
        }
    return km_fail(s->err, KM_EINVAL, "%s is \"%.80s\"; it must be true or false", s->key, s->value);
}

static int read_number(const struct setting *s, double *out)
{
    char *end;
    errno = 0;
    *out = strtod(s->value, &end);
    if (end == s->value || *end || errno || !isfinite(*out) || strpbrk(s->value, "xX"))
        return km_fail(s->err, KM_EINVAL, "%s is \"%.80s\"; it must be a number", s->key, s->value);
    return 0;
}

static int set_chunk_size(const struct setting *s)
{
    double n;
    int rc = read_number(s, &n);
    if (rc)
        return rc;
    if (n < 1 || n > KVC_CHUNK_MOST || n != floor(n))
        return km_fail(s->err, KM_EINVAL,
                       "%s is %.80s; it must be a whole number of tokens from 1 to %d, and a multiple of the engine's "
                       "block size (256 is usual)",
                       s->key, s->value, KVC_CHUNK_MOST);
    s->c->chunk_size = (int)n;
    return 0;
}

static int set_max_local_cpu(const struct setting *s)
{
    double gib;
    int rc = read_number(s, &gib);
    if (rc)
        return rc;
    if (gib < 0 || gib > MAX_GIB)
        return km_fail(s->err, KM_EINVAL, "%s is %.80s; it must be between 0 and %d (GiB)", s->key, s->value, MAX_GIB);
    s->c->max_local_cpu = (int64_t)(gib * (double)GIB);
    return 0;
}

static int set_policy(const struct setting *s)
{
    bool lru = !strcasecmp(s->value, "LRU");
    if (!lru && strcasecmp(s->value, "FIFO"))
        return km_fail(s->err, KM_EINVAL, "%s is \"%.80s\"; this version has LRU and FIFO", s->key, s->value);
    s->c->policy = lru ? KVC_LRU : KVC_FIFO;
    return 0;
}

static int set_local_cpu(const struct setting *s)
{
    return read_bool(s, &s->c->local_cpu);
}

static int set_save_decode(const struct setting *s)
{
    return read_bool(s, &s->c->save_decode);
}

static int set_save_unfull(const struct setting *s)
{
    return read_bool(s, &s->c->save_unfull);
}

static const struct {
    const char *key;
    int (*set)(const struct setting *s);
} served[] = {
    {"chunk_size", set_chunk_size},         {"local_cpu", set_local_cpu}, {"max_local_cpu_size", set_max_local_cpu},
    {"save_decode_cache", set_save_decode}, {"cache_policy", set_policy}, {"save_unfull_chunk", set_save_unfull},
};

static int unknown_key(const char *key, struct km_err *err)
{
    const char *all[SIZE(served) + SIZE(known) + MAX_TIER_KEYS];
    const struct kvc_tier_ops *t;
    int n = 0;
    for (int i = 0; i < SIZE(served); i++)
        all[n++] = served[i].key;
    for (int i = 0; i < SIZE(known); i++)
        all[n++] = known[i];
    for (int i = 0; (t = kvc_tier_at(i)); i++)
        for (int k = 0; k < t->n_keys && n < SIZE(all); k++)
            all[n++] = t->keys[k].key;
    const char *near = km_nearest(key, all, n);
    return near ? km_fail(err, KM_EINVAL, "unknown key \"%.80s\"; did you mean \"%s\"?", key, near)
                : km_fail(err, KM_EINVAL, "unknown key \"%.80s\"; LMCache has no such key: remove it", key);
}

/* One document of a YAML file. */
struct doc {
    const char *path;
    yaml_document_t yaml;
    struct kvc_tier_config tier[KVC_TIERS_MOST]; /* [n_tiers] of the registry, whether or not the file enables them */
    int n_tiers;
    struct km_buf *warnings;
};

/* Sets *value to the text of a served key's value; NULL for a null value, which changes nothing, as in LMCache. */
static int read_value(const char *key, const yaml_node_t *v, const char **value, struct km_err *err)
{
    if (v->type != YAML_SCALAR_NODE || strlen((const char *)v->data.scalar.value) != v->data.scalar.length)
        return km_fail(err, KM_EINVAL, "%s is a %s; it must be one plain value", key,
                       v->type == YAML_SEQUENCE_NODE  ? "list"
                       : v->type == YAML_MAPPING_NODE ? "mapping"
                                                      : "text with a NUL character");
    *value = (const char *)v->data.scalar.value;
    if (is_null(*value))
        *value = NULL;
    return 0;
}

/* Passes the value to every tier that serves the key. Sets *found to true if there is one. */
static int set_tier_key(struct doc *d, const char *key, const yaml_node_t *v, bool *found, struct km_err *err)
{
    bool taken = false;
    for (int i = 0; i < d->n_tiers; i++) {
        struct kvc_tier_config *t = &d->tier[i];
        for (int k = 0; k < t->ops->n_keys; k++) {
            if (strcmp(key, t->ops->keys[k].key))
                continue;
            *found = true;
            const char *value;
            int rc = read_value(key, v, &value, err);
            if (!rc && value)
                rc = t->ops->keys[k].set(t->config, key, value, err);
            if (rc < 0)
                return rc;
            taken |= rc == 0;
        }
    }
    if (*found && !taken)
        km_buf_printf(d->warnings, "not supported yet: this value of %s\n", key);
    return 0;
}

/* Reads one "key: value" of the file. */
static int read_pair(struct doc *d, const yaml_node_pair_t *p, struct kvc_config *c, struct km_err *err)
{
    yaml_node_t *k = yaml_document_get_node(&d->yaml, p->key), *v = yaml_document_get_node(&d->yaml, p->value);
    if (k->type != YAML_SCALAR_NODE)
        return km_fail(err, KM_EFORMAT, "a key is not a plain word; write \"name: value\" lines");
    const char *key = (const char *)k->data.scalar.value;
    if (strlen(key) != k->data.scalar.length)
        return km_fail(err, KM_EFORMAT, "a key contains a NUL character");
    for (int i = 0; i < SIZE(served); i++) {
        if (strcmp(key, served[i].key))
            continue;
        const char *value;
        int rc = read_value(key, v, &value, err);
        const struct setting one = {key, value, c, err};
        return rc || !value ? rc : served[i].set(&one);
    }
    bool found = false;
    int rc = set_tier_key(d, key, v, &found, err);
    if (rc || found)
        return rc;
    if (!is_known(key))
        return unknown_key(key, err);
    km_buf_printf(d->warnings, "not supported yet: %s\n", key);
    return 0;
}

/* Refuses a key that occurs twice: otherwise one of its values would be ignored silently. */
static int check_duplicate(struct doc *d, const yaml_node_pair_t *first, const yaml_node_pair_t *p, struct km_err *err)
{
    yaml_node_t *k = yaml_document_get_node(&d->yaml, p->key);
    for (; first < p; first++) {
        yaml_node_t *o = yaml_document_get_node(&d->yaml, first->key);
        if (k->type == YAML_SCALAR_NODE && o->type == YAML_SCALAR_NODE &&
            !strcmp((const char *)k->data.scalar.value, (const char *)o->data.scalar.value))
            return km_fail(err, KM_EFORMAT, "key \"%.80s\" occurs twice (first in line %zu); keep one",
                           (const char *)k->data.scalar.value, o->start_mark.line + 1);
    }
    return 0;
}

static int read_map(struct doc *d, struct kvc_config *c, struct km_err *err)
{
    yaml_node_t *root = yaml_document_get_root_node(&d->yaml);
    if (!root || (root->type == YAML_SCALAR_NODE && is_null((const char *)root->data.scalar.value)))
        return 0; /* an empty file: all defaults */
    if (root->type != YAML_MAPPING_NODE)
        return km_fail(err, KM_EFORMAT, "%s, line %zu: the file is not a list of \"name: value\" lines", d->path,
                       root->start_mark.line + 1);
    yaml_node_pair_t *first = root->data.mapping.pairs.start, *end = root->data.mapping.pairs.top;
    if (end - first > MAX_KEYS)
        return km_fail(err, KM_EFORMAT, "%s: the file has %td keys; it may have at most %d", d->path, end - first,
                       MAX_KEYS);
    for (yaml_node_pair_t *p = first; p < end; p++) {
        int rc = check_duplicate(d, first, p, err);
        if (!rc)
            rc = read_pair(d, p, c, err);
        if (rc) {
            size_t line = yaml_document_get_node(&d->yaml, p->key)->start_mark.line + 1;
            return km_context(err, "%s, line %zu", d->path, line), rc;
        }
    }
    return 0;
}

static int yaml_problem(const char *path, const yaml_parser_t *p, struct km_err *err)
{
    if (p->error == YAML_MEMORY_ERROR)
        return km_fail(err, KM_ENOMEM, "%s: out of memory", path);
    return km_fail(err, KM_EFORMAT, "%s, line %zu: this is not YAML: %s", path,
                   (p->error == YAML_READER_ERROR ? 0 : p->problem_mark.line) + 1, p->problem ? p->problem : "?");
}

static int refuse_second_document(const char *path, yaml_parser_t *p, struct km_err *err)
{
    yaml_document_t next;
    if (!yaml_parser_load(p, &next))
        return yaml_problem(path, p, err);
    const yaml_node_t *root = yaml_document_get_root_node(&next);
    int rc = 0;
    if (root)
        rc = km_fail(err, KM_EFORMAT, "%s, line %zu: a second document starts; write one document per file", path,
                     root->start_mark.line + 1);
    yaml_document_delete(&next);
    return rc;
}

static void init_tier(struct kvc_tier_config *t, const struct kvc_tier_ops *ops)
{
    memset(t, 0, sizeof *t);
    t->ops = ops;
    ops->defaults(t->config);
}

/* Adds the tier to c if its config describes one. Sets *on to whether it does. */
static int add_tier(struct kvc_config *c, const struct kvc_tier_config *t, bool *on, struct km_err *err)
{
    *on = false;
    int rc = t->ops->enabled(t->config, on, err);
    if (!rc && *on && c->n_tiers == KVC_TIERS_MOST)
        rc = km_fail(err, KM_EINVAL, "there are more than %d cache tiers; leave one out", KVC_TIERS_MOST);
    if (!rc && *on)
        c->tier[c->n_tiers++] = *t;
    return rc;
}

static int read_yaml(const char *path, const struct km_buf *text, struct kvc_config *c, struct km_buf *warnings,
                     struct km_err *err)
{
    yaml_parser_t p;
    struct doc d = {.path = path, .warnings = warnings};
    const struct kvc_tier_ops *ops;
    while (d.n_tiers < KVC_TIERS_MOST && (ops = kvc_tier_at(d.n_tiers)))
        init_tier(&d.tier[d.n_tiers++], ops);
    if (!yaml_parser_initialize(&p))
        return km_fail(err, KM_ENOMEM, "%s: out of memory", path);
    yaml_parser_set_input_string(&p, (const unsigned char *)km_buf_str(text), text->len);
    int rc = 0;
    if (!yaml_parser_load(&p, &d.yaml))
        rc = yaml_problem(path, &p, err);
    else {
        rc = read_map(&d, c, err);
        bool empty = !yaml_document_get_root_node(&d.yaml);
        yaml_document_delete(&d.yaml);
        if (!rc && !empty)
            rc = refuse_second_document(path, &p, err);
    }
    yaml_parser_delete(&p);
    c->n_tiers = 0;
    for (int i = 0; !rc && i < d.n_tiers; i++) {
        bool on;
        if ((rc = add_tier(c, &d.tier[i], &on, err)))
            km_context(err, "%s", path);
    }
    return rc;
}

int kvc_config_yaml(const char *path, struct kvc_config *c, struct km_buf *warnings, struct km_err *err)
{
    struct km_buf text = {0};
    struct kvc_config out = *c;
    int rc = km_file_read(path, MAX_FILE, &text, err), open = 0;
    for (size_t i = 0; i < text.len; i++)
        open += text.data[i] == '[' || text.data[i] == '{';
    if (!rc && open > MAX_BRACKETS)
        rc = km_fail(err, KM_EFORMAT, "%s: the file has %d opening brackets; it may have at most %d",
                     path, open, MAX_BRACKETS);
    if (!rc)
        rc = read_yaml(path, &text, &out, warnings, err);
    km_buf_free(&text);
    if (rc)
        return rc;
    if (out.local_cpu && out.max_local_cpu < 1)
        return km_fail(err, KM_EINVAL,
                       "%s: max_local_cpu_size is 0; set it to the GiB of the DRAM tier, or set local_cpu: false",
                       path);
    if (out.n_tiers && out.max_local_cpu < 1)
        return km_fail(err, KM_EINVAL,
                       "%s: max_local_cpu_size is 0; also without local_cpu, chunks of the %s tier pass through host "
                       "memory: set it to the GiB to use for that",
                       path, out.tier[0].ops->name);
    if (!kvc_config_on(&out))
        km_buf_puts(warnings, "local_cpu: false leaves no tier, so nothing is cached\n");
    if (!km_buf_ok(warnings))
        return km_fail(err, KM_ENOMEM, "%s: out of memory", path);
    *c = out;
    return 0;
}

/* Reads the size of the element dram=. */
static int read_dram(const char *item, struct kvc_config *c, struct km_err *err)
{
    if (c->local_cpu)
        return km_fail(err, KM_EINVAL, "dram= occurs twice; give one size");
    int64_t size;
    int rc = km_parse_size(item + strlen(dram_scheme), &size, err);
    if (rc)
        return km_context(err, "%s", dram_scheme), rc;
    if (size < 1)
        return km_fail(err, KM_EINVAL, "\"%.200s\" leaves no memory; give a larger size, or \"none\" for no cache",
                       item);
    c->local_cpu = true;
    c->max_local_cpu = size;
    return 0;
}

/* Reads one element of the specification, and adds what it describes. */
static int read_element(const char *item, struct kvc_config *c, struct km_err *err)
{
    if (!strncmp(item, dram_scheme, strlen(dram_scheme)))
        return read_dram(item, c, err);
    const struct kvc_tier_ops *ops;
    int i = 0;
    while ((ops = kvc_tier_at(i)) && strncmp(item, ops->scheme, strlen(ops->scheme)))
        i++;
    if (!ops) {
        struct km_buf forms = {0};
        kvc_config_usage(&forms);
        int rc = km_fail(err, KM_EINVAL, "\"%.200s\" is not a cache tier; write \"none\", or a list of: %s", item,
                         km_buf_str(&forms));
        km_buf_free(&forms);
        return rc;
    }
    for (i = 0; i < c->n_tiers; i++)
        if (c->tier[i].ops == ops)
            return km_fail(err, KM_EINVAL, "%s occurs twice; give one %s tier", ops->scheme, ops->name);
    struct kvc_tier_config t;
    bool on = false;
    init_tier(&t, ops);
    int rc = ops->parse(t.config, item + strlen(ops->scheme), err);
    if (!rc)
        rc = add_tier(c, &t, &on, err);
    if (!rc && !on)
        rc = km_fail(err, KM_EINVAL, "\"%.200s\" describes no tier; write %s", item, ops->usage);
    return rc;
}

int kvc_config_spec(const char *spec, struct kvc_config *c, bool *off, struct km_err *err)
{
    struct kvc_config out = *c;
    int rc = 0;
    *off = !strcmp(spec, "none");
    if (*off)
        return 0;
    out.local_cpu = false;
    out.max_local_cpu = KVC_STAGING;
    out.n_tiers = 0;
    for (const char *p = spec; !rc; p++) {
        size_t n = strcspn(p, ",");
        char *item = km_strndup(p, n);
        rc = item ? read_element(item, &out, err) : km_fail(err, KM_ENOMEM, "out of memory");
        km_free(item);
        p += n;
        if (!*p)
            break;
    }
    if (rc)
        return km_context(err, "cache \"%.200s\"", spec), rc;
    *c = out;
    return 0;
}

void kvc_config_usage(struct km_buf *out)
{
    const struct kvc_tier_ops *t;
    km_buf_printf(out, "%sSIZE", dram_scheme);
    for (int i = 0; (t = kvc_tier_at(i)); i++)
        km_buf_printf(out, ", %s", t->usage);
}

/* Appends a whole number of the largest unit that divides n: "50GiB" with base 1024, "5GB" with base 1000. */
static void put_bytes(struct km_buf *out, int64_t n, int base)
{
    static const char letters[] = "KMG";
    int u = 0;
    while (u < 3 && n && n % base == 0)
        n /= base, u++;
    km_buf_printf(out, "%" PRId64, n);
    if (u)
        km_buf_printf(out, "%c%s", letters[u - 1], base == 1024 ? "i" : "");
    km_buf_putc(out, 'B');
}

void kvc_describe(const struct kvc_config *c, struct km_buf *out)
{
    char text[512];
    if (!kvc_config_on(c))
        km_buf_puts(out, "no tier, ");
    if (c->local_cpu) {
        km_buf_puts(out, dram_scheme);
        put_bytes(out, c->max_local_cpu, 1024);
        km_buf_puts(out, ", ");
    }
    for (int i = 0; i < c->n_tiers; i++) {
        *text = 0;
        c->tier[i].ops->describe(c->tier[i].config, text, sizeof text);
        km_buf_printf(out, "%s, ", text);
    }
    if (c->n_tiers && !c->local_cpu) {
        km_buf_puts(out, "staging ");
        put_bytes(out, c->max_local_cpu, 1024);
        km_buf_puts(out, ", ");
    }
    km_buf_printf(out, "chunk %d%s%s%s", c->chunk_size, c->policy == KVC_FIFO ? ", FIFO" : "",
                  c->save_decode ? ", decode kept" : "", c->save_unfull ? ", partial chunks kept" : "");
    if (c->throttle) {
        km_buf_puts(out, ", loads at most ");
        put_bytes(out, c->throttle, c->throttle % 1000 ? 1024 : 1000);
        km_buf_puts(out, "/s");
    }
}

/* Prints a memory plan: one table per kind of memory with its rows in the order of their groups, the KV pool, and the
 * cache layer. The cache layer has a table of its own, because the engine's memory limit does not apply to it. */
#include "harness/cli/memory_plan.h"

#include <string.h>

static const char *const memory_names[KM_MEM_KINDS] = {
    [KM_MEM_HOST] = "host", [KM_MEM_PINNED] = "pinned", [KM_MEM_DEVICE] = "device"};
static const char *const headings[KM_MEM_KINDS] = {[KM_MEM_HOST] = "Host memory",
                                                   [KM_MEM_PINNED] =
                                                       "Pinned host memory, which the GPU copies from and to",
                                                   [KM_MEM_DEVICE] = "GPU memory"};
static const char *const groups[PLAN_GROUPS] = {
    [PLAN_WEIGHTS] = "weights", [PLAN_WORKSPACE] = "workspace", [PLAN_RESERVE] = "left free", [PLAN_KV] = "KV"};

/* The option, or the fact about the machine, that sets the limit. */
static void name_limit(const struct serve_plan *p, const struct serve_opts *o, char *buf, size_t size)
{
    if (p->mem.limit_stated)
        snprintf(buf, size, "--gpu-memory-limit");
    else if (p->mem.limited == KM_MEM_DEVICE)
        snprintf(buf, size, "--gpu-memory-utilization %g of the GPU", o->engine.memory_utilization);
    else
        snprintf(buf, size, "free on this machine now");
}

/* The request lengths, in tokens, for which the plan states how many requests fit: 1,024, 4,096, 16,384 and so on below
 * the context, and the context itself. Returns the number of lengths. */
enum { LENGTHS = 12 };
static int fill_lengths(const struct serve_plan *p, int out[LENGTHS])
{
    int n = 0;
    for (int t = 1024; t < p->engine.max_model_len && n < LENGTHS - 1; t *= 4)
        out[n++] = t;
    out[n++] = p->engine.max_model_len;
    return n;
}

/* The number of requests of `tokens` tokens whose KV fits in the pool at the same time. */
static int requests_that_fit(const struct serve_plan *p, int tokens)
{
    int B = p->engine.block_size;
    return p->engine.num_blocks / ((tokens + B - 1) / B);
}

/* The kind of memory that holds the chunks of the cache layer. */
static enum km_mem_kind cache_memory(const struct serve_plan *p)
{
    return p->mem.limited == KM_MEM_DEVICE ? KM_MEM_PINNED : KM_MEM_HOST;
}

/* Bytes of all slots of the cache layer's host memory. */
static int64_t slot_bytes(const struct serve_plan *p)
{
    return p->cache.slots * (int64_t)(p->cache.payload_bytes + p->cache.header_bytes);
}

/* One thing that the cache layer keeps in host memory. */
struct cache_row {
    char name[64];
    enum km_mem_kind where;
    int64_t bytes;
};
enum { CACHE_ROWS = 3 + KVC_TIERS_MOST };

/* Fills out and returns the number of rows: 0 without a cache layer. */
static int fill_cache_rows(const struct serve_plan *p, struct cache_row out[CACHE_ROWS])
{
    const struct kvc_config *c = &p->kv.config;
    int n = 0;
    if (!p->cache.slots)
        return 0;
    out[n++] = (struct cache_row){.where = cache_memory(p), .bytes = p->cache.slots * (int64_t)p->cache.payload_bytes};
    out[n++] = (struct cache_row){.where = cache_memory(p), .bytes = p->cache.slots * (int64_t)p->cache.header_bytes};
    out[n++] = (struct cache_row){.name = "index", .where = KM_MEM_HOST, .bytes = p->cache.index_bytes};
    snprintf(out[0].name, sizeof out->name, "%s", c->local_cpu ? "chunks" : "staging of chunks");
    snprintf(out[1].name, sizeof out->name, "headers of chunks");
    for (int i = 0; i < c->n_tiers; i++) {
        out[n] = (struct cache_row){.where = KM_MEM_HOST, .bytes = p->cache.tier[i].host_bytes};
        snprintf(out[n++].name, sizeof out->name, "%s tier", c->tier[i].ops->name);
    }
    return n;
}

static double mib(int64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static void print_memory(const struct serve_plan *p, const struct serve_opts *o, enum km_mem_kind where, FILE *to)
{
    char limit[64];
    fprintf(to, "\n%-56s%12s\n", headings[where], "MiB");
    for (int g = 0; g < PLAN_GROUPS; g++) {
        const char *label = groups[g];
        for (int i = 0; i < p->mem.n_rows; i++) {
            const struct plan_row *r = &p->mem.rows[i];
            if (r->where != where || r->group != (enum plan_group)g)
                continue;
            fprintf(to, "  %-12s%-42s%12.2f\n", label, r->name, mib(r->bytes));
            label = "";
        }
    }
    fprintf(to, "  %-54s%12.2f\n", "total", mib(plan_total(&p->mem, where)));
    if (where != p->mem.limited)
        return;
    name_limit(p, o, limit, sizeof limit);
    fprintf(to, "  %-12s%-42s%12.2f\n", "limit", limit, mib(p->mem.limit));
}

static void print_kv(const struct serve_plan *p, FILE *to)
{
    const struct eng_opts *e = &p->engine;
    int length[LENGTHS], n = fill_lengths(p, length);
    fprintf(to, "\nKV pool      %d blocks of %d tokens, %.4g MiB each; %lld tokens in all\n", e->num_blocks,
            e->block_size, mib(p->token_bytes * e->block_size), (long long)e->num_blocks * e->block_size);
    fprintf(to, "Context      %d tokens, prompt and answer together\n", e->max_model_len);
    fprintf(to, "Requests     ");
    for (int i = 0; i < n; i++)
        fprintf(to, "%s%d of %d tokens", !i ? "" : i + 1 < n ? ", " : " or ", requests_that_fit(p, length[i]),
                length[i]);
    fprintf(to, " fit in the pool; at most %d run at the same time\n", e->max_num_seqs);
}

/* Prints the host memory of the cache layer, beside which the engine's is planned, and what its tiers keep. */
static void print_cache(const struct serve_plan *p, FILE *to)
{
    const struct kvc_config *c = &p->kv.config;
    const int64_t chunk = p->token_bytes * c->chunk_size;
    struct cache_row row[CACHE_ROWS];
    int n = fill_cache_rows(p, row);
    int64_t total = 0;
    if (n)
        fprintf(to, "\n%-56s%12s\n", "Host memory of the cache layer", "MiB");
    for (int i = 0; i < n; i++, total += row[i - 1].bytes)
        fprintf(to, "  %-12s%-42s%12.2f\n", i && row[i].where == row[i - 1].where ? "" : memory_names[row[i].where],
                row[i].name, mib(row[i].bytes));
    if (n)
        fprintf(to, "  %-54s%12.2f\n  %-54s%12.2f\n", "total", mib(total), "free on this machine now",
                mib(p->available));
    fprintf(to, "%sCache layer  %s; a chunk of %d tokens is %.4g MiB\n", n ? "\n" : "", p->facts.kv, c->chunk_size,
            mib(chunk));
    if (!n)
        return;
    fprintf(to, "             %d chunks, %lld tokens, %.2f MiB of %s memory%s\n", p->cache.slots,
            (long long)p->cache.slots * c->chunk_size, mib(slot_bytes(p)), memory_names[cache_memory(p)],
            c->local_cpu ? "" : ", for staging only");
    for (int i = 0; i < c->n_tiers; i++)
        if (p->cache.tier[i].capacity) {
            int64_t most = p->cache.tier[i].capacity / (int64_t)(p->cache.payload_bytes + p->cache.header_bytes);
            fprintf(to, "             %lld chunks, %lld tokens, in the %s tier\n", (long long)most,
                    (long long)most * c->chunk_size, c->tier[i].ops->name);
        }
    fprintf(to, "             serve compares this with the free memory, starts, and takes it in the background\n");
    if (total > p->available)
        fprintf(to, "             this is more than this machine has free now: serve would refuse it here\n");
}

void memory_plan_print(const struct serve_plan *p, const struct serve_opts *o, FILE *to)
{
    fprintf(to, "%s%s, %s, on %s (%s)\n", p->model, p->facts.dummy_weights ? " (dummy weights)" : "",
            km_dtype_name(p->engine.dtype), p->facts.device, p->mem.device);
    print_memory(p, o, p->mem.limited, to);
    for (int w = KM_MEM_KINDS - 1; w >= 0; w--)
        if (w != (int)p->mem.limited && plan_total(&p->mem, (enum km_mem_kind)w))
            print_memory(p, o, (enum km_mem_kind)w, to);
    if (p->fits)
        print_kv(p, to);
    if (p->fits || p->cache.slots)
        print_cache(p, to);
}

static void add_row(cJSON *to, const char *memory, const char *group, const char *name, int64_t bytes)
{
    cJSON *row = cJSON_CreateObject();
    cJSON_AddStringToObject(row, "memory", memory);
    cJSON_AddStringToObject(row, "group", group);
    cJSON_AddStringToObject(row, "name", name);
    cJSON_AddNumberToObject(row, "bytes", (double)bytes);
    cJSON_AddItemToArray(to, row);
}

static void add_kv(cJSON *to, const struct serve_plan *p)
{
    const struct eng_opts *e = &p->engine;
    int length[LENGTHS], n = fill_lengths(p, length);
    cJSON *kv = cJSON_AddObjectToObject(to, "kv");
    cJSON_AddNumberToObject(kv, "blocks", e->num_blocks);
    cJSON_AddNumberToObject(kv, "block_tokens", e->block_size);
    cJSON_AddNumberToObject(kv, "block_bytes", (double)(p->token_bytes * e->block_size));
    cJSON_AddNumberToObject(kv, "tokens", (double)e->num_blocks * e->block_size);
    cJSON_AddNumberToObject(kv, "context", e->max_model_len);
    cJSON_AddNumberToObject(kv, "most_running", e->max_num_seqs);
    cJSON *fit = cJSON_AddArrayToObject(kv, "at_once");
    for (int i = 0; i < n; i++) {
        cJSON *one = cJSON_CreateObject();
        cJSON_AddNumberToObject(one, "tokens", length[i]);
        cJSON_AddNumberToObject(one, "requests", requests_that_fit(p, length[i]));
        cJSON_AddItemToArray(fit, one);
    }
}

static void add_cache(cJSON *to, const struct serve_plan *p)
{
    const struct kvc_config *config = &p->kv.config;
    struct cache_row row[CACHE_ROWS];
    int n = fill_cache_rows(p, row);
    cJSON *c = cJSON_AddObjectToObject(to, "cache");
    cJSON_AddStringToObject(c, "what", p->facts.kv);
    cJSON_AddNumberToObject(c, "chunk_tokens", config->chunk_size);
    cJSON_AddNumberToObject(c, "chunk_bytes", (double)(p->token_bytes * config->chunk_size));
    cJSON_AddNumberToObject(c, "chunks", p->cache.slots);
    cJSON_AddNumberToObject(c, "bytes", (double)slot_bytes(p));
    cJSON_AddStringToObject(c, "memory", memory_names[cache_memory(p)]);
    cJSON_AddBoolToObject(c, "staging_only", p->kv.on && !config->local_cpu);
    cJSON *rows = cJSON_AddArrayToObject(c, "rows"), *tiers = cJSON_AddArrayToObject(c, "tiers");
    for (int i = 0; i < n; i++)
        add_row(rows, memory_names[row[i].where], "cache layer", row[i].name, row[i].bytes);
    for (int i = 0; i < config->n_tiers; i++) {
        cJSON *one = cJSON_CreateObject();
        cJSON_AddStringToObject(one, "name", config->tier[i].ops->name);
        if (p->cache.tier[i].capacity)
            cJSON_AddNumberToObject(one, "capacity_bytes", (double)p->cache.tier[i].capacity);
        else
            cJSON_AddNullToObject(one, "capacity_bytes");
        cJSON_AddItemToArray(tiers, one);
    }
    cJSON_AddNumberToObject(c, "available_bytes", (double)p->available);
}

cJSON *memory_plan_json(const struct serve_plan *p, const struct serve_opts *o)
{
    char from[64];
    cJSON *all = cJSON_CreateObject();
    cJSON_AddStringToObject(all, "model", p->model);
    cJSON_AddBoolToObject(all, "dummy_weights", p->facts.dummy_weights);
    cJSON_AddStringToObject(all, "dtype", km_dtype_name(p->engine.dtype));
    cJSON_AddStringToObject(all, "backend", p->facts.device);
    cJSON_AddStringToObject(all, "device", p->mem.device);
    cJSON_AddBoolToObject(all, "fits", p->fits);
    cJSON *rows = cJSON_AddArrayToObject(all, "rows"), *totals = cJSON_AddObjectToObject(all, "totals");
    for (int i = 0; i < p->mem.n_rows; i++) {
        const struct plan_row *r = &p->mem.rows[i];
        add_row(rows, memory_names[r->where], groups[r->group], r->name, r->bytes);
    }
    for (int w = 0; w < KM_MEM_KINDS; w++)
        cJSON_AddNumberToObject(totals, memory_names[w], (double)plan_total(&p->mem, (enum km_mem_kind)w));
    name_limit(p, o, from, sizeof from);
    cJSON *limit = cJSON_AddObjectToObject(all, "limit");
    cJSON_AddStringToObject(limit, "memory", memory_names[p->mem.limited]);
    cJSON_AddStringToObject(limit, "from", from);
    cJSON_AddNumberToObject(limit, "bytes", (double)p->mem.limit);
    if (p->fits)
        add_kv(all, p);
    else
        cJSON_AddNullToObject(all, "kv");
    if (p->fits || p->cache.slots)
        add_cache(all, p);
    else
        cJSON_AddNullToObject(all, "cache");
    return all;
}

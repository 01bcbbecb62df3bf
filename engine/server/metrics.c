/* Two kinds of tables: `hists` lists the histograms, and the functions put_*_values list counters and gauges, a row for
 * each metric with its name, type, help text and value. The metrics of single tiers come from the cache layer's own
 * rows. Their names differ from those of the layer's totals, so that a sum over labels counts nothing twice. */
#include "engine/server/metrics.h"

#include "base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Upper edges of buckets. They are vLLM's, so that dashboards and queries written for vLLM work unchanged. */
#define SECONDS_SHORT                                                                                                  \
    {                                                                                                                  \
        0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640,    \
            2560                                                                                                       \
    }
#define SECONDS_TOKEN                                                                                                  \
    {                                                                                                                  \
        0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80                  \
    }
#define SECONDS_LONG                                                                                                   \
    {                                                                                                                  \
        0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680                   \
    }
#define TOKENS                                                                                                         \
    {                                                                                                                  \
        1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000                              \
    }

static const struct {
    const char *name, *help;
    double edges[MET_MAX_EDGES]; /* up to the first 0 */
} hists[MET_KINDS] = {
    [MET_TTFT] = {"vllm:time_to_first_token_seconds",
                  "Seconds from the arrival of a request to its first token (TTFT).", SECONDS_SHORT},
    [MET_ITL] = {"vllm:inter_token_latency_seconds", "Seconds between consecutive output tokens of a request (ITL).",
                 SECONDS_TOKEN},
    [MET_TPOT] = {"vllm:request_time_per_output_token_seconds",
                  "Mean seconds per output token of a request after its first output token (TPOT).", SECONDS_TOKEN},
    [MET_E2E] = {"vllm:e2e_request_latency_seconds", "Seconds from the arrival of a request to its last token (E2E).",
                 SECONDS_LONG},
    [MET_QUEUE] = {"vllm:request_queue_time_seconds",
                   "Seconds from the arrival of a request until it was first scheduled.", SECONDS_LONG},
    [MET_PREFILL] = {"vllm:request_prefill_time_seconds",
                     "Seconds from the time a request was first scheduled to its first token.", SECONDS_LONG},
    [MET_DECODE] = {"vllm:request_decode_time_seconds", "Seconds from the first token of a request to its last token.",
                    SECONDS_LONG},
    [MET_PROMPT] = {"vllm:request_prompt_tokens", "Prompt tokens of a request.", TOKENS},
    [MET_GENERATED] = {"vllm:request_generation_tokens", "Output tokens of a request.", TOKENS},
    [MET_CACHED] = {"kvmark_request_cached_tokens",
                    "Prompt tokens of a request whose KV was found in the KV pool or the cache layer.", TOKENS},
};

void met_observe(struct met *m, enum met_kind k, double v)
{
    int i = 0;
    while (i < MET_MAX_EDGES && hists[k].edges[i] > 0 && v > hists[k].edges[i])
        i++;
    if (i < MET_MAX_EDGES && !(hists[k].edges[i] > 0))
        i = MET_MAX_EDGES;
    m->hist[k].counts[i]++;
    m->hist[k].n++;
    m->hist[k].sum += v;
}

static void put_head(struct km_buf *b, const char *name, const char *help, const char *type)
{
    km_buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* Appends the value of a label, with backslashes, quotes and newlines escaped. */
static void put_label(struct km_buf *b, const char *s)
{
    for (; *s; s++)
        if (*s == '\n')
            km_buf_puts(b, "\\n");
        else if (*s == '"' || *s == '\\')
            km_buf_printf(b, "\\%c", *s);
        else
            km_buf_putc(b, *s);
}

static void put_hist(struct km_buf *b, const struct met *m, enum met_kind k, const char *model)
{
    const char *name = hists[k].name;
    put_head(b, name, hists[k].help, "histogram");
    int64_t below = 0;
    for (int i = 0; i < MET_MAX_EDGES && hists[k].edges[i] > 0; i++) {
        below += m->hist[k].counts[i];
        km_buf_printf(b, "%s_bucket{model_name=\"%s\",le=\"%g\"} %" PRId64 "\n", name, model, hists[k].edges[i], below);
    }
    km_buf_printf(b, "%s_bucket{model_name=\"%s\",le=\"+Inf\"} %" PRId64 "\n", name, model, m->hist[k].n);
    km_buf_printf(b, "%s_sum{model_name=\"%s\"} %.9g\n", name, model, m->hist[k].sum);
    km_buf_printf(b, "%s_count{model_name=\"%s\"} %" PRId64 "\n", name, model, m->hist[k].n);
}

struct value {
    const char *name;
    enum { COUNTER, GAUGE } type;
    const char *help;
    double v;
};

static void put_values(struct km_buf *b, const struct value *v, size_t n, const char *model)
{
    for (size_t i = 0; i < n; i++) {
        put_head(b, v[i].name, v[i].help, v[i].type == COUNTER ? "counter" : "gauge");
        km_buf_printf(b, "%s{model_name=\"%s\"} %.15g\n", v[i].name, model, v[i].v);
    }
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

/* The scheduler and the KV pool. */
static void put_engine_values(struct km_buf *b, const struct eng_stats *s, const char *model)
{
    const struct value values[] = {
        {"vllm:num_requests_running", GAUGE, "Requests that are running.", s->running},
        {"vllm:num_requests_waiting", GAUGE, "Requests that wait to be scheduled.", s->waiting},
        {"kvmark_num_requests_loading", GAUGE, "Requests that wait for a load from the cache layer.", s->loading},
        {"vllm:kv_cache_usage_perc", GAUGE,
         "Share of the KV pool's pages that requests or transfers hold, from 0 to 1.", ratio(s->pages_used, s->pages)},
        {"kvmark_kv_pages", GAUGE, "Pages in the KV pool.", s->pages},
        {"kvmark_kv_pages_used", GAUGE, "Pages of the KV pool that requests or transfers hold.", s->pages_used},
        {"kvmark_kv_pages_cached", GAUGE,
         "Unused pages of the KV pool whose blocks can still be found by their prefix.", s->pages_cached},
        {"vllm:prefix_cache_queries_total", COUNTER, "Prompt tokens looked up in the KV pool.",
         (double)s->prefix_queries},
        {"vllm:prefix_cache_hits_total", COUNTER, "Prompt tokens found in the KV pool.", (double)s->prefix_hits},
        {"vllm:prompt_tokens_total", COUNTER, "Prompt tokens of requests that have generated their first token.",
         (double)s->prompt_tokens},
        {"vllm:generation_tokens_total", COUNTER, "Output tokens generated.", (double)s->generated_tokens},
        {"vllm:num_preemptions_total", COUNTER,
         "Preemptions. A preempted request loses its pages and is recomputed later.", (double)s->preemptions},
        {"kvmark_steps_total", COUNTER, "Steps that the engine has run.", (double)s->steps},
        {"kvmark_async_steps_total", COUNTER,
         "Steps that were submitted early, while the previous step was still running (async scheduling).",
         (double)s->async_steps},
        {"kvmark_wasted_rows_total", COUNTER,
         "Rows of steps submitted early whose results were dropped. No other metric counts these rows.",
         (double)s->wasted_rows},
        {"kvmark_computed_tokens_total", COUNTER,
         "Prompt and output tokens that the model has computed. Tokens found in the KV pool or the cache layer are not "
         "included.",
         (double)s->computed_tokens},
    };
    put_values(b, values, sizeof values / sizeof *values, model);
}

/* The cache layer; all values are 0 without one. */
static void put_cache_values(struct km_buf *b, const struct kv_port_stats *kv, const char *model)
{
    const struct value values[] = {
        {"vllm:external_prefix_cache_queries_total", COUNTER,
         "Prompt tokens that the KV pool did not have, and that were looked up in the cache layer.",
         (double)kv->lookup_tokens},
        {"vllm:external_prefix_cache_hits_total", COUNTER, "Prompt tokens found in the cache layer.",
         (double)kv->hit_tokens},
        {"kvmark_cache_lookups_total", COUNTER, "Lookups that the cache layer answered.", (double)kv->lookups},
        {"kvmark_cache_lookup_tokens_total", COUNTER,
         "Tokens that the KV pool did not have, and that were looked up in the cache layer.",
         (double)kv->lookup_tokens},
        {"kvmark_cache_hit_tokens_total", COUNTER, "Tokens among them that were found in the cache layer.",
         (double)kv->hit_tokens},
        {"kvmark_cache_loaded_tokens_total", COUNTER, "Tokens loaded from the cache layer.", (double)kv->loaded_tokens},
        {"kvmark_cache_stored_tokens_total", COUNTER, "Tokens stored in the cache layer.", (double)kv->stored_tokens},
        {"kvmark_cache_failed_loads_total", COUNTER,
         "Loads that met missing, wrong or late bytes. The tokens that they did not load were computed.",
         (double)kv->failed_loads},
        {"kvmark_cache_corrupt_chunks_total", COUNTER,
         "Chunks that the cache layer dropped because a checksum did not match.", (double)kv->corrupt_chunks},
        {"kvmark_cache_evicted_chunks_total", COUNTER,
         "Chunks that the cache layer evicted from host memory to store others.", (double)kv->evicted_chunks},
        {"kvmark_cache_chunks", GAUGE, "Chunks that the cache layer has in host memory.", (double)kv->chunks},
        {"kvmark_cache_bytes", GAUGE, "Host memory of the cache layer that is in use, in bytes.", (double)kv->bytes},
        {"kvmark_cache_capacity_bytes", GAUGE, "Host memory of the cache layer, in bytes.", (double)kv->capacity},
        {"kvmark_cache_load_seconds_total", COUNTER,
         "Total seconds of loads from the cache layer, each from the call to its completion.",
         (double)kv->load_ns / 1e9},
        {"kvmark_cache_store_seconds_total", COUNTER,
         "Total seconds of stores to the cache layer, each from the call to its completion.",
         (double)kv->store_ns / 1e9},
    };
    put_values(b, values, sizeof values / sizeof *values, model);
}

/* The cache layer's rows for single tiers: a family per name, with a sample for each tier that has the name. */
static void put_tier_values(struct km_buf *b, const struct kv_port_stats *kv, const char *model)
{
    for (int i = 0; i < kv->n_rows; i++) {
        const struct kv_stat_row *first = &kv->rows[i];
        int before = 0;
        while (before < i && strcmp(kv->rows[before].name, first->name))
            before++;
        if (before < i)
            continue;
        char name[96];
        snprintf(name, sizeof name, "kvmark_cache_tier_%.60s%s", first->name, first->gauge ? "" : "_total");
        put_head(b, name, first->help, first->gauge ? "gauge" : "counter");
        for (int k = i; k < kv->n_rows; k++)
            if (!strcmp(kv->rows[k].name, first->name))
                km_buf_printf(b, "%s{model_name=\"%s\",tier=\"%s\"} %.15g\n", name, model, kv->rows[k].tier,
                              kv->rows[k].value);
    }
}

/* Memory, and the device's work. */
static void put_device_values(struct km_buf *b, const struct be_stats *be, const char *model)
{
    struct km_mem_stats host = km_mem_stats(KM_MEM_HOST), pinned = km_mem_stats(KM_MEM_PINNED);
    struct km_mem_stats device = km_mem_stats(KM_MEM_DEVICE);
    const struct value values[] = {
        {"kvmark_host_memory_bytes", GAUGE, "Host memory allocated now, in bytes.", (double)host.current},
        {"kvmark_host_memory_peak_bytes", GAUGE, "Most host memory allocated at any time so far, in bytes.",
         (double)host.peak},
        {"kvmark_pinned_memory_bytes", GAUGE, "Pinned host memory allocated now, in bytes.", (double)pinned.current},
        {"kvmark_device_memory_bytes", GAUGE, "Device memory allocated now, in bytes.", (double)device.current},
        {"kvmark_weight_bytes", GAUGE, "Size of the model's weights on the device, in bytes.",
         (double)be->weight_bytes},
        {"kvmark_kv_pool_bytes", GAUGE, "Size of the KV pool, in bytes.", (double)be->kv_bytes},
        {"kvmark_device_busy_seconds_total", COUNTER, "Seconds that the device has spent in steps of the engine.",
         (double)be->busy_ns / 1e9},
        {"kvmark_device_flops_total", COUNTER,
         "Floating-point operations of all steps of the engine, calculated from their shapes.", be->flops},
    };
    put_values(b, values, sizeof values / sizeof *values, model);
}

static void put_http_values(struct km_buf *b, const struct http_stats *h, int live, const char *model)
{
    const struct value values[] = {
        {"kvmark_http_requests_live", GAUGE, "Completion and chat requests in progress.", live},
        {"kvmark_http_connections", GAUGE, "HTTP connections that are open.", h->connections},
        {"kvmark_http_accepted_total", COUNTER, "HTTP connections accepted.", (double)h->accepted},
        {"kvmark_http_accept_pauses_total", COUNTER,
         "Pauses in accepting HTTP connections, because connections or file descriptors had reached their limit.",
         (double)h->accept_pauses},
        {"kvmark_http_timeouts_total", COUNTER,
         "HTTP requests refused because they had not arrived completely within the read timeout.", (double)h->timeouts},
        {"kvmark_http_slow_readers_total", COUNTER,
         "HTTP connections closed because the client did not read its answer.", (double)h->slow_readers},
    };
    put_values(b, values, sizeof values / sizeof *values, model);
    const char *name = "kvmark_http_responses_total";
    put_head(b, name, "HTTP responses by status code.", "counter");
    for (int s = 100; s < 600; s++)
        if (h->replies[s])
            km_buf_printf(b, "%s{code=\"%d\"} %" PRId64 "\n", name, s, h->replies[s]);
}

static void put_finished(struct km_buf *b, const struct eng_stats *s, const char *model)
{
    static const char *const reasons[5] = {
        [ENG_STOP] = "stop", [ENG_LENGTH] = "length", [ENG_ABORT] = "abort", [ENG_ERROR] = "error"};
    const char *name = "vllm:request_success_total";
    put_head(b, name, "Requests that have ended, by the reason of the end.", "counter");
    for (int i = ENG_STOP; i <= ENG_ERROR; i++)
        km_buf_printf(b, "%s{finished_reason=\"%s\",model_name=\"%s\"} %" PRId64 "\n", name, reasons[i], model,
                      s->finished[i]);
}

static void put_config(struct km_buf *b, const struct met_facts *f, const char *model)
{
    const char *name = "vllm:cache_config_info";
    put_head(b, name, "Configuration of the KV pool and the cache layer, as labels.", "gauge");
    km_buf_printf(b, "%s{model_name=\"%s\",block_size=\"%d\",num_gpu_blocks=\"%d\",enable_prefix_caching=\"%s\",kv=\"",
                  name, model, f->opts->block_size, f->stats.pages, f->opts->prefix_caching ? "True" : "False");
    put_label(b, f->kv);
    km_buf_puts(b, "\",device=\"");
    put_label(b, f->device);
    km_buf_puts(b, "\"} 1\n");
}

void met_write(const struct met *m, const struct met_facts *f, struct km_buf *out)
{
    struct km_buf label = {0};
    put_label(&label, f->model);
    const char *model = km_buf_str(&label);
    put_engine_values(out, &f->stats, model);
    put_cache_values(out, &f->stats.kv, model);
    put_tier_values(out, &f->stats.kv, model);
    put_device_values(out, &f->stats.be, model);
    put_finished(out, &f->stats, model);
    put_config(out, f, model);
    put_http_values(out, f->http, f->live, model);
    for (int k = 0; k < MET_KINDS; k++)
        put_hist(out, m, (enum met_kind)k, model);
    km_buf_free(&label);
}

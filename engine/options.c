/* The engine's options: a table with one row per field of `struct eng_opts`, and the limits that depend on the
 * model. */
#include "engine/engine_internal.h"
#include "engine/planner.h"

#include <limits.h>

static const struct km_option rows[] = {
    {.name = "dtype",
     KM_FIELD_CHOICE(struct eng_opts, dtype),
     .values = "auto|float32|bfloat16",
     .fallback = "auto",
     .lo = ENG_DTYPE_AUTO,
     .help = "number format of weights and KV; auto: float32 for a float32 checkpoint, else bfloat16"},
    {.name = "threads",
     KM_FIELD(struct eng_opts, n_threads),
     .arg = "N",
     .lo = 0,
     .hi = 1024,
     .help = "CPU threads (default: one per core)"},
    {.name = "max-model-len",
     KM_FIELD(struct eng_opts, max_model_len),
     .arg = "N",
     .lo = 1,
     .hi = 1 << 24,
     .help = "most tokens of a request, prompt and answer together (default: the model's, or what the KV pool holds)"},
    {.name = "max-num-seqs",
     KM_FIELD(struct eng_opts, max_num_seqs),
     .arg = "N",
     .fallback = "256",
     .lo = 1,
     .hi = 4096,
     .help = "most requests running at the same time"},
    {.name = "max-num-batched-tokens",
     KM_FIELD(struct eng_opts, max_num_batched_tokens),
     .arg = "N",
     .fallback = "2048",
     .lo = 1,
     .hi = 1 << 20,
     .help = "token budget of a step"},
    {.name = "block-size",
     KM_FIELD(struct eng_opts, block_size),
     .arg = "N",
     .fallback = "16",
     .lo = 1,
     .hi = 1024,
     .help = "tokens of a KV block"},
    {.name = "num-gpu-blocks-override",
     KM_FIELD(struct eng_opts, num_blocks),
     .arg = "N",
     .lo = 1,
     .hi = 1 << 28,
     .help = "KV blocks of the pool, on a GPU or a CPU (default: as many as fit in memory)"},
    {.name = "gpu-memory-utilization",
     KM_FIELD(struct eng_opts, memory_utilization),
     .arg = "X",
     .fallback = "0.9",
     .lo = 0.01,
     .hi = 1,
     .help = "share of the GPU's memory to use"},
    {.name = "gpu-memory-limit",
     KM_FIELD_SIZE(struct eng_opts, memory_limit),
     .arg = "SIZE",
     .help = "memory for weights, workspace and KV pool together, on a GPU or a CPU, for example 24GiB (default: "
             "--gpu-memory-utilization; on a CPU, KV for eight requests of full length)"},
    {.name = "enable-prefix-caching",
     KM_FIELD(struct eng_opts, prefix_caching),
     .fallback = "true",
     .help = "reuse KV blocks that are still in the pool"},
    {.name = "kv-planner",
     KM_FIELD_CHOICE(struct eng_opts, kv_planner),
     .values = "load|compute|auto",
     .fallback = "auto",
     .lo = PLN_LOAD,
     .help = "what to do with KV that the cache layer has: load it, compute it again, or auto: both, from opposite "
             "ends, until they meet"},
    {.name = "max-waiting",
     KM_FIELD(struct eng_opts, max_waiting),
     .fallback = "4096",
     .lo = 1,
     .hi = 1 << 20,
     .internal = true},
};

struct km_option_group eng_option_group(struct eng_opts *o)
{
    return KM_OPTION_GROUP("Engine", rows, o);
}

struct eng_opts eng_defaults(void)
{
    struct eng_opts o;
    struct km_option_group group = eng_option_group(&o);
    km_options_default(&group, 1);
    return o;
}

int eng_check_options(const struct eng_opts *o, const struct mdl_config *c, const struct kv_port *port,
                      struct km_err *err)
{
    struct eng_opts copy = *o;
    struct km_option_group group = eng_option_group(&copy);
    int rc = km_options_check(&group, 1, err);
    if (rc)
        return rc;
    if (o->max_model_len > c->max_pos)
        return km_fail(err, KM_EINVAL, "--max-model-len is %d, but the model's longest context is %d tokens",
                       o->max_model_len, c->max_pos);
    if (o->num_blocks > INT_MAX / o->block_size)
        return km_fail(err, KM_EINVAL,
                       "--num-gpu-blocks-override is %d; with blocks of %d tokens, at most %d are possible",
                       o->num_blocks, o->block_size, INT_MAX / o->block_size);
    if (port && (port->chunk_size < 1 || port->chunk_size % o->block_size))
        return km_fail(err, KM_EINVAL,
                       "the chunk size of the cache layer is %d tokens, which is not a multiple of the block size, %d: "
                       "change --chunk-size or --block-size",
                       port->chunk_size, o->block_size);
    return 0;
}

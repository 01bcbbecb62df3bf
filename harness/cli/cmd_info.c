/* kvmark info: this machine and its measured limits; or, with --plan, the memory that an engine would take. */
#include "base/log.h"
#include "engine/backend.h"
#include "engine/rates.h"
#include "harness/cli/cmd.h"
#include "harness/cli/memory_plan.h"
#include "harness/cli/machine_limits.h"
#include "harness/cli/serve.h"
#include "harness/run/env.h"
#include "kvcache/kvcache.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct info_opts {
    bool json, plan;
    struct serve_opts engine; /* for --plan */
};

static const struct km_option rows[] = {
    {.name = "json", KM_FIELD(struct info_opts, json), .help = "print one JSON object, not lines"},
    {.name = "plan",
     KM_FIELD(struct info_opts, plan),
     .help = "print the memory that an engine with the options of serve would take"},
};

static int groups(void *options, struct km_option_group *out)
{
    struct info_opts *o = options;
    out[0] = KM_OPTION_GROUP("Info", rows, o);
    return 1 + serve_option_groups(&o->engine, out + 1);
}

/* The rates that a backend measures on a GPU: fields of `struct rates`. */
static const struct {
    const char *key, *what, *unit;
    size_t offset;
} gpu_rates[] = {
    {"gpu_copy_gbps", "copy inside the GPU's memory, read plus written", "GB/s", offsetof(struct rates, copy_gbps)},
    {"h2d_gbps", "pinned host memory to the GPU", "GB/s", offsetof(struct rates, h2d_gbps)},
    {"d2h_gbps", "GPU to pinned host memory", "GB/s", offsetof(struct rates, d2h_gbps)},
    {"gemm_tflops", "GEMM by cuBLASLt, bfloat16, 4096 x 4096 x 4096", "TFLOP/s", offsetof(struct rates, gemm_tflops)},
};
enum { N_GPU_RATES = sizeof gpu_rates / sizeof *gpu_rates };

/* Prints an object as a heading, its members as lines below, and an array of words on one line. */
static void print_lines(const cJSON *group, int depth)
{
    const cJSON *item, *word;
    cJSON_ArrayForEach(item, group)
    {
        printf("%*s%s%*s", 2 * depth, "", item->string,
               cJSON_IsObject(item) ? 0 : 28 - 2 * depth - (int)strlen(item->string), "");
        if (cJSON_IsString(item))
            fputs(item->valuestring, stdout);
        else if (cJSON_IsNumber(item))
            printf(item->valuedouble == floor(item->valuedouble) ? "%.0f" : "%.4g", item->valuedouble);
        else if (cJSON_IsBool(item))
            fputs(cJSON_IsTrue(item) ? "yes" : "no", stdout);
        else if (cJSON_IsNull(item))
            fputs("-", stdout);
        const cJSON *words = cJSON_IsArray(item) ? item : NULL;
        cJSON_ArrayForEach(word, words)
        {
            printf("%s%s", word == words->child ? "" : " ", cJSON_IsString(word) ? word->valuestring : "");
        }
        putchar('\n');
        if (cJSON_IsObject(item))
            print_lines(item, depth + 1);
    }
}

static void print(const cJSON *v, bool json)
{
    char *text = json ? cJSON_Print(v) : NULL;
    if (text)
        puts(text);
    else
        print_lines(v, 0);
    cJSON_free(text);
}

static int run_plan(const struct info_opts *o)
{
    struct km_err err;
    struct serve_plan p;
    int rc = serve_make_plan(&o->engine, &p, &err);
    if ((!rc || rc == KM_ELIMIT) && o->json) {
        cJSON *all = memory_plan_json(&p, &o->engine);
        print(all, true);
        cJSON_Delete(all);
    } else if (!rc || rc == KM_ELIMIT) {
        memory_plan_print(&p, &o->engine, stdout);
    }
    return rc ? cmd_error(&err, rc == KM_EINVAL ? CMD_USAGE : CMD_FAILED) : CMD_OK;
}

/* Adds the GPU and its measured rates, or the reason why they could not be measured. True if they were. */
static bool add_gpu(cJSON *all, const struct backend *be)
{
    struct rates r = {0};
    struct km_err err;
    if (be->measure(&r, &err)) {
        cJSON_AddStringToObject(all, "gpu", err.msg);
        return false;
    }
    cJSON *gpu = cJSON_AddObjectToObject(all, "gpu");
    cJSON_AddStringToObject(gpu, "name", r.device);
    cJSON_AddNumberToObject(gpu, "memory_bytes", (double)r.memory);
    for (int i = 0; i < N_GPU_RATES; i++) {
        double v;
        memcpy(&v, (const char *)&r + gpu_rates[i].offset, sizeof v);
        cJSON_AddNumberToObject(gpu, gpu_rates[i].key, v);
    }
    return true;
}

static int run_measurements(bool json)
{
    cJSON *all = cJSON_CreateObject();
    cJSON_AddItemToObject(all, "machine", hz_environment());
    cJSON *devices = cJSON_AddObjectToObject(all, "devices");
    const struct backend *be, *measurable = NULL;
    for (int i = 0; (be = backend_at(i)); i++) {
        struct km_err why;
        bool here = !backend_pick(be->name, &be, &why);
        cJSON_AddStringToObject(devices, be->name, here ? "available" : why.msg);
        if (here && be->measure)
            measurable = be;
    }
    struct km_buf tiers = {0};
    kvc_config_usage(&tiers);
    cJSON_AddStringToObject(all, "cache_tiers", km_buf_str(&tiers));
    km_buf_free(&tiers);
    cJSON *limits = cJSON_AddObjectToObject(all, "limits");
    for (int i = 0; i < n_machine_limits; i++) {
        double v = machine_limit_measure(&machine_limits[i]);
        if (v < 0)
            cJSON_AddNullToObject(limits, machine_limits[i].key);
        else
            cJSON_AddNumberToObject(limits, machine_limits[i].key, v);
    }
    bool gpu = measurable && add_gpu(all, measurable);
    print(all, json);
    for (int i = 0; !json && i < n_machine_limits; i++)
        printf("  # %s: %s, in %s, median of %d\n", machine_limits[i].key, machine_limits[i].what,
               machine_limits[i].unit, MACHINE_LIMIT_REPEATS);
    for (int i = 0; !json && gpu && i < N_GPU_RATES; i++)
        printf("  # %s: %s, in %s, median of %d\n", gpu_rates[i].key, gpu_rates[i].what, gpu_rates[i].unit,
               MACHINE_LIMIT_REPEATS);
    cJSON_Delete(all);
    return CMD_OK;
}

static int run(const struct cmd_call *call)
{
    struct km_err err;
    struct info_opts *o = call->options;
    int rc = 0;
    if (o->plan && call->args.n == 1 && !o->engine.model) /* as serve accepts it */
        o->engine.model = call->args.v[0];
    else if (call->args.n)
        rc = km_fail(&err, KM_EINVAL,
                     o->plan ? "info --plan takes one model; \"%s\" is left over"
                             : "\"%s\" is left over: info takes a model only with --plan",
                     call->args.v[call->args.n - 1]);
    else if (!o->plan && call->argc > (o->json ? 1 : 0)) /* a word other than --json */
        rc = km_fail(&err, KM_EINVAL,
                     "the options of serve belong to info --plan; without --plan, info takes only --json");
    if (rc)
        return cmd_error(&err, CMD_USAGE);
    return o->plan ? run_plan(o) : run_measurements(o->json);
}

const struct cmd cmd_info = {
    .name = "info",
    .usage = "[--json] | --plan --model DIR|PRESET [OPTIONS]",
    .summary = "Describe this machine and measure its limits, or plan the memory of an engine",
    .text =
        "Without --plan, info describes the machine and its devices, lists the tiers that --kv-cache accepts, and "
        "measures the limits of the machine: arithmetic, memory, disk, loopback and, with a GPU, copies and GEMM.\n\n"
        "--plan takes the options of serve. Without loading weights, it prints the memory that serve would allocate: "
        "the weights, each buffer of the workspace, the memory left free for the driver, and the KV pool. It also "
        "prints how many tokens, and how many requests of some lengths, the KV pool holds. The cache layer's host "
        "memory has a table of its own, because the engine's memory limit does not apply to it. If the engine does "
        "not fit, or on a CPU the engine and the cache layer together, info prints the error message of serve, and "
        "the exit status is 1.\n\n"
        "--gpu-memory-limit SIZE needs no GPU: with it, --plan --device cuda works on any machine, if the program was "
        "built with the CUDA backend.",
    .options_size = sizeof(struct info_opts),
    .groups = groups,
    .run = run,
};

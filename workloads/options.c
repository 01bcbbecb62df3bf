/* The options of generating a workload: one row per field of `struct wl_gen_opts`. */
#include "workloads/spec.h"
#include "workloads/workload.h"

static const struct km_option rows[] = {
    {.name = "text", KM_FIELD_CHOICE(struct wl_gen_opts, text), .values = "file|builtin|auto", .fallback = "file",
     .help = "where the words of prompts come from: the workload's text_files, a built-in generator, or the files if "
             "they exist and else the generator"},
    {.name = "text-dir", KM_FIELD(struct wl_gen_opts, text_dir), .arg = "DIR",
     .help = "folder to search for text_files first"},
    {.name = "num-conversations", KM_FIELD(struct wl_gen_opts, num_conversations), .arg = "N", .lo = 1,
     .hi = WL_MAX_CONVS, .help = "number of conversations (default: the workload's)"},
    {.name = "num-prompts", KM_FIELD(struct wl_gen_opts, num_prompts), .arg = "N", .lo = 1, .hi = WL_MAX_CONVS,
     .help = "number of prompts, of a workload of single prompts (default: the workload's)"},
};

struct km_option_group wl_option_group(struct wl_gen_opts *o)
{
    return KM_OPTION_GROUP("Workload", rows, o);
}

/* Workload flags, and the one decision they hold: which text the words come from. */
#include "harness/cli/wlflags.h"

#include "base/log.h"

#include <string.h>

struct wlf_opts wlf_defaults(void)
{
    return (struct wlf_opts){.text = "file"};
}

int wlf_flags(struct wlf_opts *o, struct km_flag *out, int max)
{
    const struct km_flag table[] = {
        {"text", 0, KM_STR, &o->text, "file|builtin|auto",
         "words from the workload's text_files, built in, or the files when there (default file)", 0, 0},
        {"text-dir", 0, KM_STR, &o->text_dir, "DIR", "where to look for text_files first", 0, 0},
        {"num-conversations", 0, KM_INT, &o->num_conversations, "N", "instead of the workload's own number", 1,
         1 << 20},
        {"num-prompts", 0, KM_INT, &o->num_prompts, "N", "likewise, for workloads of single prompts", 1, 1 << 24},
    };
    int n = (int)(sizeof table / sizeof *table);
    for (int i = 0; i < n && i < max; i++)
        out[i] = table[i];
    return n < max ? n : max;
}

int wlf_generate(const struct wlf_opts *o, const char *path, const struct tok *tok, struct wl_set **out,
                 struct km_err *err)
{
    struct wl_spec *spec = NULL;
    int rc = wl_spec_read(&spec, path, err);
    if (rc)
        return rc;
    bool prompts = wl_kind_ops(wl_spec_kind(spec))->single_prompts;
    if (prompts ? o->num_conversations != 0 : o->num_prompts != 0)
        rc =
            km_fail(err, KM_EINVAL, "--%s does not fit %s, whose size is given by --%s",
                    prompts ? "num-conversations" : "num-prompts", path, prompts ? "num-prompts" : "num-conversations");
    struct wl_gen_opts g = {.seed = (uint64_t)o->seed,
                            .text_dir = o->text_dir,
                            .builtin_text = !strcmp(o->text, "builtin"),
                            .num_conversations = (int)(prompts ? o->num_prompts : o->num_conversations)};
    if (!rc)
        rc = wl_generate(out, spec, &g, tok, err);
    if (rc == KM_ENOENT && !strcmp(o->text, "auto")) {
        km_log(KM_LOG_INFO, "the built-in text stands in for the workload's own (`make data` fetches the novel)");
        g.builtin_text = true;
        rc = wl_generate(out, spec, &g, tok, err);
    }
    wl_spec_free(spec);
    return rc;
}

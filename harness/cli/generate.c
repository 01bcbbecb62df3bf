/* Generates a workload for a subcommand. */
#include "harness/cli/generate.h"

#include "base/log.h"

#include <string.h>

int generate_workload(struct wl_set **out, const char *path, const struct wl_gen_opts *o, const struct tok *tok,
                      struct km_err *err)
{
    struct wl_spec *spec = NULL;
    int rc = wl_spec_read(&spec, path, err);
    if (!rc)
        rc = wl_generate(out, spec, o, tok, err);
    if (!rc && o->text == WL_TEXT_AUTO && !strcmp((*out)->text, "built-in text"))
        km_log(KM_LOG_INFO, "the built-in text replaces the workload's text files, which were not found (`make "
                            "data` fetches the novel)");
    wl_spec_free(spec);
    return rc;
}

/* The table of workload kinds, in the order of WL_KINDS, and the searches in it. */
#include "workloads/kind.h"

#include <stdio.h>
#include <string.h>

#define DECLARE(kind, ops) extern const struct wl_kind_ops ops;
WL_KINDS(DECLARE)

#define ENTRY(kind, ops) [kind] = &ops,
static const struct wl_kind_ops *const kinds[] = {WL_KINDS(ENTRY)};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

const struct wl_kind_ops *wl_kind_ops(enum wl_kind kind)
{
    return kinds[kind];
}

enum wl_kind wl_kind_named(const char *name)
{
    for (int k = 0; name && k < N_KINDS; k++)
        if (!strcmp(name, kinds[k]->name))
            return (enum wl_kind)k;
    return WL_MULTI_TURN;
}

int wl_kind_of_file(const char *filetype, enum wl_kind *out, struct km_err *err)
{
    char accepted[200] = "";
    for (int k = 0; k < N_KINDS; k++) {
        const char *type = kinds[k]->filetype;
        if (filetype && type ? !strcmp(filetype, type) : filetype == type) {
            *out = (enum wl_kind)k;
            return 0;
        }
        size_t used = strlen(accepted);
        if (type)
            snprintf(accepted + used, sizeof accepted - used, "%s\"%s\"", used ? ", " : "", type);
    }
    return km_fail(err, KM_EINVAL, "\"filetype\" is \"%.60s\"; it must be one of %s", filetype ? filetype : "missing",
                   accepted);
}

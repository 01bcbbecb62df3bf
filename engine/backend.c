/* The registry of backends, and the choice of one by name. */
#include "engine/backend.h"

#include <stdio.h>
#include <string.h>

/* The names of all backends, the preferred ones first. To add a backend, add its folder to engine/ and its name to this
 * list. The folder's library must define a `const struct backend be_NAME`. */
#define BACKENDS(X) X(cuda) X(cpu)

#ifndef KVMARK_WITH_CUDA
/* The probe of the CUDA backend in a build without CUDA. */
static int probe_missing_cuda(struct km_err *err)
{
    return km_fail(err, KM_EDEVICE,
                   "this build has no CUDA backend: use --device cpu, or install the CUDA toolkit and build with "
                   "-DKVMARK_CUDA=ON");
}

const struct backend be_cuda = {.name = "cuda", .probe = probe_missing_cuda};
#endif

#define DECLARE(name) extern const struct backend be_##name;
#define ADDRESS(name) &be_##name,
BACKENDS(DECLARE)
static const struct backend *const backends[] = {BACKENDS(ADDRESS)};
enum { N_BACKENDS = sizeof backends / sizeof *backends };

const struct backend *backend_at(int i)
{
    return i < N_BACKENDS ? backends[i] : NULL;
}

static int probe(const struct backend *b, struct km_err *err)
{
    return b->probe ? b->probe(err) : 0;
}

static int find(const char *name, const struct backend **out, struct km_err *err)
{
    char names[128] = "auto";
    for (int i = 0; i < N_BACKENDS; i++) {
        if (!strcmp(backends[i]->name, name)) {
            *out = backends[i];
            return 0;
        }
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s%s", i + 1 < N_BACKENDS ? ", " : " or ", backends[i]->name);
    }
    return km_fail(err, KM_EINVAL, "--device is \"%s\": it must be %s", name, names);
}

int backend_pick(const char *want, const struct backend **out, struct km_err *err)
{
    const struct backend *b;
    int rc = KM_EDEVICE;
    if (!strcmp(want, "auto")) {
        for (int i = 0; i < N_BACKENDS && rc; i++)
            rc = probe(b = backends[i], err);
    } else {
        rc = find(want, &b, err);
        if (!rc)
            rc = probe(b, err);
    }
    if (!rc)
        *out = b;
    return rc;
}

int backend_pick_plan(const char *want, const struct backend **out, struct km_err *err)
{
    const struct backend *b;
    if (!strcmp(want, "auto"))
        return backend_pick(want, out, err);
    int rc = find(want, &b, err);
    if (!rc && !b->open)
        rc = probe(b, err);
    if (!rc)
        *out = b;
    return rc;
}

bool backend_fell_back(const char *want, const struct backend *got, struct km_err *why)
{
    if (strcmp(want, "auto"))
        return false;
    for (int i = 0; i < N_BACKENDS && backends[i] != got; i++)
        if (backends[i]->open && probe(backends[i], why))
            return true;
    return false;
}

/* Which backend a name means. */
#include "engine/backend.h"

#include "engine/rates.h"

#include <string.h>

#ifndef KVMARK_WITH_CUDA /* else engine/cuda/probe.cu asks the card */
int be_cuda_probe(struct km_err *err)
{
    return km_fail(
        err, KM_EDEVICE,
        "this build has no CUDA backend (no CUDA toolkit was found when it was built): use --device cpu");
}

int rates_measure(struct rates *out, struct km_err *err)
{
    (void)out;
    return be_cuda_probe(err);
}
#endif

int backend_pick(const char *want, const struct backend **out, struct km_err *err)
{
    bool any = !strcmp(want, "auto"), cuda = !strcmp(want, "cuda");
    if (!any && !cuda && strcmp(want, "cpu"))
        return km_fail(err, KM_EINVAL, "--device is \"%s\": it must be auto, cpu or cuda", want);
    *out = &be_cpu;
    struct km_err why;
    int rc = any || cuda ? be_cuda_probe(&why) : KM_EDEVICE;
    if (cuda && rc)
        return km_fail(err, rc, "%s", why.msg);
#ifdef KVMARK_WITH_CUDA
    if (!rc)
        *out = &be_cuda;
#endif
    return 0;
}

int backend_pick_plan(const char *want, const struct backend **out, struct km_err *err)
{
#ifdef KVMARK_WITH_CUDA
    if (!strcmp(want, "cuda")) {
        *out = &be_cuda;
        return 0;
    }
#endif
    return backend_pick(want, out, err);
}

bool backend_fell_back(const char *want, const struct backend *got, struct km_err *why)
{
#ifdef KVMARK_WITH_CUDA
    return !strcmp(want, "auto") && got == &be_cpu && be_cuda_probe(why);
#else
    (void)want, (void)got, (void)why;
    return false;
#endif
}

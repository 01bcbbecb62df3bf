#include "base/err.h"

#include <stdio.h>
#include <string.h>

int km_vfail(struct km_err *err, int code, const char *fmt, va_list ap)
{
    if (err) {
        err->code = code;
        vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    }
    return code;
}

int km_fail(struct km_err *err, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    km_vfail(err, code, fmt, ap);
    va_end(ap);
    return code;
}

int km_context(struct km_err *err, const char *fmt, ...)
{
    if (!err)
        return KM_EINVAL;
    char old[sizeof err->msg];
    memcpy(old, err->msg, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof err->msg)
        snprintf(err->msg + n, sizeof err->msg - (size_t)n, ": %s", old);
    return err->code;
}

const char *km_err_name(int code)
{
    static const char *const names[] = {"ok",        "invalid", "not found",     "bad format",   "I/O error",
                                        "no memory", "limit",   "network error", "device error", "cancelled"};
    int i = -code;
    return i >= 0 && i < (int)(sizeof names / sizeof *names) ? names[i] : "unknown";
}

/* One error rule for every library in the tree.
 *
 * A function that can fail returns 0 or a negative code from this list and writes one sentence into
 * the caller's `struct km_err`: the thing, the value it had, and what to do about it. Libraries never
 * print and never exit; mains turn the message into one line on stderr and the code into an exit
 * status. `err` may always be NULL. */
#ifndef KM_ERR_H
#define KM_ERR_H

#include <stdarg.h>

enum {
    KM_OK = 0,
    KM_EINVAL = -1,  /* the caller or the user asked for something that cannot be   */
    KM_ENOENT = -2,  /* a file, a model, a key that is not there                     */
    KM_EFORMAT = -3, /* a file or a peer whose bytes are not what they should be     */
    KM_EIO = -4,     /* the system said no: read, write, mmap, socket                */
    KM_ENOMEM = -5,  /* an allocation failed                                         */
    KM_ELIMIT = -6,  /* a stated limit would be passed (context, pool, queue)        */
    KM_ENET = -7,    /* no connection, a connection lost, a deadline missed          */
    KM_EDEVICE = -8, /* no device, or the device failed                              */
    KM_ECANCEL = -9  /* stopped on request                                           */
};

struct km_err {
    int code;      /* 0 or one of the above */
    char msg[500]; /* one sentence, no newline, always terminated */
};

/* Sets err (when not NULL) and returns code, so that `return km_fail(err, KM_EINVAL, ...)` reads well. */
int km_fail(struct km_err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int km_vfail(struct km_err *err, int code, const char *fmt, va_list ap);

/* Puts "context: " before the message already there; returns err->code (KM_EINVAL when err is NULL). */
int km_context(struct km_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The code's name for logs and tests: "invalid", "not found", ... */
const char *km_err_name(int code);

#endif

/* The error rule of every library in the tree.
 *
 * A function that can fail returns 0, or a negative code from this list and one sentence in the caller's `struct
 * km_err`: the thing, the value it had, and what to do about it. Libraries never print and never exit. Programs print
 * the message as one line on stderr and turn the code into an exit status. The `err` argument may always be NULL. */
#ifndef KM_ERR_H
#define KM_ERR_H

#include <stdarg.h>

enum {
    KM_OK = 0,
    KM_EINVAL = -1,  /* the caller or the user asked for something impossible */
    KM_ENOENT = -2,  /* a file, a model or a key does not exist */
    KM_EFORMAT = -3, /* the bytes of a file or of a peer are not in the right format */
    KM_EIO = -4,     /* a system call failed: read, write, mmap, socket */
    KM_ENOMEM = -5,  /* an allocation failed */
    KM_ELIMIT = -6,  /* a stated limit would be exceeded (context, pool, queue) */
    KM_ENET = -7,    /* a connection was refused or lost, or a deadline was missed */
    KM_EDEVICE = -8, /* there is no device, or the device failed */
    KM_ECANCEL = -9  /* stopped on request */
};

struct km_err {
    int code;      /* 0, or one of the codes above */
    char msg[500]; /* one sentence without a newline, always terminated */
};

/* Sets *err and returns code: `return km_fail(err, KM_EINVAL, ...)`. */
int km_fail(struct km_err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int km_vfail(struct km_err *err, int code, const char *fmt, va_list ap);

/* Puts "context: " before the message in *err. Returns err->code, or KM_EINVAL when err is NULL. */
int km_context(struct km_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The code's name for logs and tests: "invalid", "not found", ... */
const char *km_err_name(int code);

#endif

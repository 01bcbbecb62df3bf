/* Asynchronous reads and writes of files for one thread: by io_uring, or by a few threads with preadv and pwritev where
 * io_uring is missing or forbidden, as it often is in containers.
 *
 * A `disk_piece` is one read or write. It is complete when all of its bytes are read or written, or when it has failed.
 * The rest of a short read or write is submitted again here. */
#ifndef DISK_AIO_H
#define DISK_AIO_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct disk_aio;

struct disk_piece {
    struct disk_piece *next; /* for lists */
    struct iovec iov[2];     /* [n_iov], consumed while the piece is in flight */
    int n_iov;
    int fd;
    bool write;
    int64_t at;              /* offset in the file */
    int rc;                  /* when complete: 0, or -errno; -ENODATA: the file ended early */
    void *user;
};

/* depth: most pieces in flight. no_uring: use threads. */
int disk_aio_open(struct disk_aio **out, int depth, bool no_uring, struct km_err *err);
/* No piece may be in flight. */
void disk_aio_close(struct disk_aio *a);
bool disk_aio_uring(const struct disk_aio *a);
/* The piece belongs to a until disk_aio_wait returns it. */
void disk_aio_submit(struct disk_aio *a, struct disk_piece *p);
/* Waits until a piece is complete or disk_aio_wake was called, and returns a list of complete pieces, or NULL. */
struct disk_piece *disk_aio_wait(struct disk_aio *a);
void disk_aio_wake(struct disk_aio *a); /* any thread */

#endif

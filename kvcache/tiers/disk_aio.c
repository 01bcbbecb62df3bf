#include "kvcache/tiers/disk_aio.h"

#include "base/mem.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { THREADS = 4 };

struct disk_aio {
    bool uring;
    /* With io_uring. */
    struct io_uring ring;
    int event;  /* an eventfd, which the ring polls */
    bool armed; /* a poll of the eventfd is in the ring */
    /* With threads. */
    pthread_mutex_t lock;
    pthread_cond_t more, done;
    struct disk_piece *todo, **todo_end, *finished;
    pthread_t thread[THREADS];
    int n_threads;
    bool woken, stop;
};

/* Notes a result of preadv or pwritev, n bytes or -errno. True if the piece is complete. */
static bool advance(struct disk_piece *p, int64_t n)
{
    if (n == -EAGAIN || n == -EINTR)
        return false;
    if (n <= 0) {
        p->rc = n < 0 ? (int)n : p->write ? -EIO : -ENODATA;
        return true;
    }
    p->at += n;
    while (p->n_iov && (size_t)n >= p->iov[0].iov_len) {
        n -= (int64_t)p->iov[0].iov_len;
        p->iov[0] = p->iov[1];
        p->n_iov--;
    }
    if (p->n_iov) {
        p->iov[0].iov_base = (char *)p->iov[0].iov_base + n;
        p->iov[0].iov_len -= (size_t)n;
    }
    return !p->n_iov;
}

/* The fallback: threads. */

static void run_piece(struct disk_piece *p)
{
    ssize_t n;
    do {
        n = p->write ? pwritev(p->fd, p->iov, p->n_iov, p->at) : preadv(p->fd, p->iov, p->n_iov, p->at);
    } while (!advance(p, n < 0 ? -errno : n));
}

static void *run_thread(void *self)
{
    struct disk_aio *a = self;
    pthread_mutex_lock(&a->lock);
    for (;;) {
        while (!a->todo && !a->stop)
            pthread_cond_wait(&a->more, &a->lock);
        struct disk_piece *p = a->todo;
        if (!p)
            break;
        if (!(a->todo = p->next))
            a->todo_end = &a->todo;
        pthread_mutex_unlock(&a->lock);
        run_piece(p);
        pthread_mutex_lock(&a->lock);
        p->next = a->finished;
        a->finished = p;
        pthread_cond_signal(&a->done);
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

static int open_threads(struct disk_aio *a, struct km_err *err)
{
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->more, NULL);
    pthread_cond_init(&a->done, NULL);
    a->todo_end = &a->todo;
    while (a->n_threads < THREADS && !pthread_create(&a->thread[a->n_threads], NULL, run_thread, a))
        a->n_threads++;
    return a->n_threads ? 0 : km_fail(err, KM_ENOMEM, "cannot start a thread for the disk tier");
}

static struct disk_piece *wait_threads(struct disk_aio *a)
{
    pthread_mutex_lock(&a->lock);
    while (!a->finished && !a->woken)
        pthread_cond_wait(&a->done, &a->lock);
    struct disk_piece *list = a->finished;
    a->finished = NULL;
    a->woken = false;
    pthread_mutex_unlock(&a->lock);
    return list;
}

static void close_threads(struct disk_aio *a)
{
    pthread_mutex_lock(&a->lock);
    a->stop = true;
    pthread_cond_broadcast(&a->more);
    pthread_mutex_unlock(&a->lock);
    for (int i = 0; i < a->n_threads; i++)
        pthread_join(a->thread[i], NULL);
    pthread_mutex_destroy(&a->lock);
    pthread_cond_destroy(&a->more);
    pthread_cond_destroy(&a->done);
}

/* io_uring. The ring has room for `depth` pieces and the poll of the eventfd, so a submission entry is always free. */

static void prepare(struct disk_aio *a, struct disk_piece *p)
{
    struct io_uring_sqe *s = io_uring_get_sqe(&a->ring);
    if (p->write)
        io_uring_prep_writev(s, p->fd, p->iov, (unsigned)p->n_iov, (uint64_t)p->at);
    else
        io_uring_prep_readv(s, p->fd, p->iov, (unsigned)p->n_iov, (uint64_t)p->at);
    io_uring_sqe_set_data(s, p);
}

static struct disk_piece *wait_uring(struct disk_aio *a)
{
    struct disk_piece *list = NULL;
    struct io_uring_cqe *c;
    for (bool woken = false; !list && !woken;) {
        if (!a->armed) {
            struct io_uring_sqe *s = io_uring_get_sqe(&a->ring);
            io_uring_prep_poll_add(s, a->event, POLLIN);
            io_uring_sqe_set_data(s, NULL);
            a->armed = true;
        }
        int rc = io_uring_submit_and_wait(&a->ring, 1);
        if (rc < 0 && rc != -EINTR)
            usleep(1000); /* the kernel has no resources for the submission now; completions may free some */
        while (!io_uring_peek_cqe(&a->ring, &c)) {
            struct disk_piece *p = io_uring_cqe_get_data(c);
            int n = c->res;
            io_uring_cqe_seen(&a->ring, c);
            uint64_t count;
            if (!p) {
                a->armed = false;
                woken = read(a->event, &count, sizeof count) > 0 || woken;
            } else if (advance(p, n)) {
                p->next = list;
                list = p;
            } else {
                prepare(a, p);
            }
        }
    }
    return list;
}

static bool open_uring(struct disk_aio *a, int depth)
{
    a->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (a->event < 0)
        return false;
    if (io_uring_queue_init(2 * (unsigned)depth + 2, &a->ring, 0)) {
        close(a->event);
        return false;
    }
    return true;
}

int disk_aio_open(struct disk_aio **out, int depth, bool no_uring, struct km_err *err)
{
    struct disk_aio *a = km_calloc(1, sizeof *a);
    if (!a)
        return km_fail(err, KM_ENOMEM, "out of memory");
    a->uring = !no_uring && open_uring(a, depth);
    int rc = a->uring ? 0 : open_threads(a, err);
    if (rc)
        km_free(a);
    else
        *out = a;
    return rc;
}

void disk_aio_close(struct disk_aio *a)
{
    if (!a)
        return;
    if (a->uring) {
        io_uring_queue_exit(&a->ring);
        close(a->event);
    } else {
        close_threads(a);
    }
    km_free(a);
}

bool disk_aio_uring(const struct disk_aio *a)
{
    return a->uring;
}

void disk_aio_submit(struct disk_aio *a, struct disk_piece *p)
{
    p->rc = 0;
    if (a->uring) {
        prepare(a, p); /* disk_aio_wait submits */
        return;
    }
    p->next = NULL;
    pthread_mutex_lock(&a->lock);
    *a->todo_end = p;
    a->todo_end = &p->next;
    pthread_cond_signal(&a->more);
    pthread_mutex_unlock(&a->lock);
}

struct disk_piece *disk_aio_wait(struct disk_aio *a)
{
    return a->uring ? wait_uring(a) : wait_threads(a);
}

void disk_aio_wake(struct disk_aio *a)
{
    if (a->uring) {
        uint64_t one = 1;
        while (write(a->event, &one, sizeof one) < 0 && errno == EINTR)
            ;
        return;
    }
    pthread_mutex_lock(&a->lock);
    a->woken = true;
    pthread_cond_signal(&a->done);
    pthread_mutex_unlock(&a->lock);
}

/* Hashes the pieces of all tensors in parallel. A thread takes the next piece from a counter, so that all threads
 * together read the files from front to back. */
#include "engine/fingerprint.h"

#include "base/mem.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <xxhash.h>

enum { MAX_THREADS = 64, PIECES_PER_THREAD = 4 /* fewer are not worth the start of a thread */ };

struct piece {
    int tensor;
    uint64_t at; /* first byte within the tensor */
};

struct hashing {
    const struct st *files;
    struct piece *pieces;       /* [n] in the order of the tensors' names */
    XXH128_canonical_t *hashes; /* [n] */
    size_t n;
    atomic_size_t next; /* first piece that no thread has taken */
    atomic_bool failed;
    struct km_err err; /* of the thread that set `failed` first */
};

static uint64_t bytes_of(const struct st_tensor *t)
{
    return t->end - t->begin;
}

static size_t piece_size(const struct hashing *x, const struct piece *p)
{
    uint64_t rest = bytes_of(st_at(x->files, p->tensor)) - p->at;
    return rest < FPR_PIECE ? (size_t)rest : FPR_PIECE;
}

static void fail(struct hashing *x, const struct km_err *err)
{
    if (!atomic_exchange(&x->failed, true))
        x->err = *err;
}

static void *hash_pieces(void *arg)
{
    struct hashing *x = arg;
    struct km_err err = {0};
    void *buf = km_aligned(64, FPR_PIECE);
    if (!buf) {
        km_fail(&err, KM_ENOMEM, "no memory for a buffer of %d bytes to read weights", FPR_PIECE);
        fail(x, &err);
    }
    for (size_t i; buf && (i = atomic_fetch_add(&x->next, 1)) < x->n && !atomic_load(&x->failed);) {
        const struct piece *p = &x->pieces[i];
        const size_t size = piece_size(x, p);
        if (st_read(x->files, st_at(x->files, p->tensor), p->at, size, buf, &err))
            fail(x, &err);
        else
            XXH128_canonicalFromHash(&x->hashes[i], XXH3_128bits(buf, size));
    }
    km_free(buf);
    return NULL;
}

/* Lists the pieces of all tensors. With pieces NULL, only counts them. */
static size_t list_pieces(const struct st *files, struct piece *pieces)
{
    size_t n = 0;
    for (int t = 0; t < st_count(files); t++)
        for (uint64_t at = 0; at < bytes_of(st_at(files, t)); at += FPR_PIECE, n++)
            if (pieces)
                pieces[n] = (struct piece){t, at};
    return n;
}

static void run_threads(struct hashing *x, int n_threads)
{
    pthread_t threads[MAX_THREADS];
    const size_t most = x->n / PIECES_PER_THREAD;
    int n = 0;
    n_threads = n_threads > MAX_THREADS ? MAX_THREADS : n_threads;
    n_threads = most < (size_t)n_threads ? (int)most : n_threads;
    while (n < n_threads - 1 && !pthread_create(&threads[n], NULL, hash_pieces, x))
        n++;
    hash_pieces(x); /* this thread hashes, too, and hashes everything if no other thread could be started */
    while (n > 0)
        pthread_join(threads[--n], NULL);
}

/* Type and shape determine how many hashes follow, so that no two checkpoints give the same sequence of bytes. A tensor
 * without elements has no pieces and does not enter. */
static void add_table(struct km_sha *h, const struct hashing *x)
{
    for (size_t i = 0, end; i < x->n; i = end) {
        const struct st_tensor *t = st_at(x->files, x->pieces[i].tensor);
        const int64_t n_dims = t->n_dims;
        for (end = i; end < x->n && x->pieces[end].tensor == x->pieces[i].tensor; end++)
            ;
        km_sha_add(h, t->name, strlen(t->name) + 1);
        km_sha_add(h, t->dtype, strlen(t->dtype) + 1);
        km_sha_add(h, &n_dims, sizeof n_dims);
        km_sha_add(h, t->dims, sizeof *t->dims * (size_t)t->n_dims);
        km_sha_add(h, x->hashes + i, sizeof *x->hashes * (end - i));
    }
}

int fpr_add_weights(struct km_sha *h, const struct st *files, int n_threads, struct km_err *err)
{
    struct hashing x = {.files = files, .n = list_pieces(files, NULL)};
    int rc = 0;
    x.pieces = km_calloc(x.n, sizeof *x.pieces);
    x.hashes = km_calloc(x.n, sizeof *x.hashes);
    if (!x.pieces || !x.hashes)
        rc = km_fail(err, KM_ENOMEM, "no memory for the hashes of %zu pieces of weights", x.n);
    if (!rc) {
        list_pieces(files, x.pieces);
        run_threads(&x, n_threads);
        if (atomic_load(&x.failed))
            rc = km_fail(err, x.err.code, "%s", x.err.msg);
    }
    if (!rc)
        add_table(h, &x);
    km_free(x.pieces);
    km_free(x.hashes);
    return rc;
}

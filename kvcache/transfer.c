/* A transfer advances whenever it is polled. Its chunks pass each stage in order, so one counter per stage records its
 * progress: chunks submitted to the copier, copied, submitted for hashing, hashed. first_failed is the first chunk that
 * failed: only the chunks before it are results. A transfer is finished when no copy and no checksum is in flight. This
 * holds after a failure too, because copies in flight still read and write memory. */
#include "kvcache/transfer.h"

#include "base/clock.h"
#include "base/mem.h"

#include <string.h>
#include <unistd.h>

/* One chunk of a transfer. */
struct chunk {
    int32_t slot;               /* slot in the chunk store and the DRAM tier */
    int32_t start;              /* the chunk's first token */
    int32_t first_copy, n_copies; /* the chunk's part of t->copy; n_copies 0: there is nothing to copy or hash */
    int32_t batch;              /* in the first chunk of a call to the copier: chunks of that call; else 0 */
    uint64_t ticket;            /* in the first chunk of a call to the copier: the copier's ticket, 0: complete */
    struct kvc_checksum_job checksum;
};

struct kvc_transfer {
    struct kvc *kvc;
    struct kv_seq *seq;         /* a load drops the pins of this sequence when it finishes; NULL: of none */
    enum kv_dir dir;
    int index;                  /* in kvc->transfers, while the ticket is open */
    uint32_t gen;               /* upper half of the ticket, so that a finished ticket differs from later ones */
    int from, to;               /* tokens to load or store */
    int rc;                     /* error of chunk first_failed */
    int64_t start_ns;           /* time when the port was called */
    int n_chunks, n_copies;
    int n_submitted, n_copied;  /* chunks whose copies were submitted, and are complete */
    int n_hashing, n_hashed;    /* chunks whose checksums were submitted, and are done */
    int first_failed;           /* n_chunks: none failed */
    struct kv_copy *copy;       /* [n_copies], by chunk */
    struct chunk chunk[];       /* [n_chunks] */
};

static bool is_load(const struct kvc_transfer *t)
{
    return t->dir == KV_TO_PAGE;
}

/* Grows kvc->transfers so that it has a free entry. False without memory. */
static bool reserve_entry(struct kvc *k)
{
    if (k->n_transfers < k->cap_transfers)
        return true;
    const size_t more = (size_t)k->cap_transfers + 8;
    struct kvc_transfer **v = km_reallocarray(k->transfers, (size_t)k->cap_transfers + more, sizeof *v);
    if (!v)
        return false;
    memset(v + k->cap_transfers, 0, more * sizeof *v);
    k->transfers = v;
    k->cap_transfers += (int)more;
    return true;
}

struct kvc_transfer *kvc_transfer_new(struct kv_seq *s, enum kv_dir dir, int chunks, int copies)
{
    if (!reserve_entry(s->kvc))
        return NULL;
    struct kvc_transfer *t = km_calloc(1, sizeof *t + (size_t)chunks * sizeof *t->chunk);
    struct kv_copy *copy = km_calloc((size_t)copies, sizeof *copy);
    if (!t || !copy) {
        km_free(t);
        km_free(copy);
        return NULL;
    }
    t->kvc = s->kvc;
    t->seq = s;
    t->dir = dir;
    t->copy = copy;
    t->start_ns = km_now_ns();
    return t;
}

void kvc_transfer_add(struct kvc_transfer *t, int slot, int start, int first, int pages, const int32_t *block_table)
{
    struct kvc *k = t->kvc;
    struct chunk *c = &t->chunk[t->n_chunks++];
    char *bytes = kvc_dram_at(&k->dram, slot);
    c->slot = slot;
    c->start = start;
    c->first_copy = t->n_copies;
    c->n_copies = pages;
    c->checksum.data = bytes;
    c->checksum.size = k->geometry.chunk_bytes;
    memcpy(&c->checksum.seed, k->chunks.slot[slot].key.b, sizeof c->checksum.seed);
    for (int i = 0; i < pages; i++)
        t->copy[t->n_copies++] = (struct kv_copy){
            .page = block_table[i], .host = bytes + (size_t)(first + i) * k->geometry.pool.page_bytes};
    if (is_load(t) || !pages)
        kvc_chunks_ref(&k->chunks, slot);
}

static void fail_from(struct kvc_transfer *t, int chunk, int rc)
{
    if (chunk < t->first_failed) {
        t->first_failed = chunk;
        t->rc = rc;
    }
}

/* Submits the copies of chunks [n_submitted, end) to the copier, in one call. */
static void submit_copies(struct kvc_transfer *t, int end)
{
    struct kvc *k = t->kvc;
    struct chunk *c = &t->chunk[t->n_submitted], *last = &t->chunk[end - 1];
    int n = last->first_copy + last->n_copies - c->first_copy;
    int rc = n ? k->copier.copy(k->copier.self, t->dir, t->copy + c->first_copy, n, &c->ticket, NULL) : 0;
    if (rc < 0) {
        fail_from(t, t->n_submitted, rc);
        return;
    }
    k->async_copies |= c->ticket != 0;
    c->batch = end - t->n_submitted;
    t->n_submitted = end;
}

/* Starts the checksum of the next chunk. With an asynchronous copier the pool computes it, so that the engine's thread
 * is free for other work. With a synchronous copier this thread does, because the chunk is in this core's cache. */
static void submit_checksum(struct kvc_transfer *t)
{
    struct kvc *k = t->kvc;
    struct chunk *c = &t->chunk[t->n_hashing++];
    if (k->skip_checksums || !c->n_copies) {
        c->checksum.value = k->chunks.slot[c->slot].checksum;
        atomic_store_explicit(&c->checksum.done, true, memory_order_relaxed);
    } else if (k->async_copies)
        kvc_checksum_pool_submit(&k->checksums, &c->checksum);
    else
        kvc_checksum_run(&c->checksum);
}

/* Retires the copies that are complete. A store then hashes the copied chunks. A failed copy does not cancel the copies
 * that were submitted after it; the transfer waits for them. */
static void retire_copies(struct kvc_transfer *t)
{
    struct kvc *k = t->kvc;
    while (t->n_copied < t->n_submitted) {
        const struct chunk *c = &t->chunk[t->n_copied];
        int rc = c->ticket ? k->copier.poll(k->copier.self, c->ticket) : 1;
        if (!rc)
            return;
        if (rc < 0)
            fail_from(t, t->n_copied, rc);
        t->n_copied += c->batch;
        while (!is_load(t) && t->n_hashing < t->n_copied && t->n_hashing < t->first_failed)
            submit_checksum(t);
    }
}

/* Retires the checksums that are done. A load compares them with the stored ones, and drops a chunk whose bytes have
 * changed from the cache. */
static void retire_checksums(struct kvc_transfer *t)
{
    struct kvc *k = t->kvc;
    for (; t->n_hashed < t->n_hashing; t->n_hashed++) {
        struct chunk *c = &t->chunk[t->n_hashed];
        if (!kvc_checksum_done(&c->checksum))
            return;
        k->checksum_ns += c->checksum.ns;
        if (!is_load(t) || t->n_hashed >= t->first_failed ||
            c->checksum.value == k->chunks.slot[c->slot].checksum)
            continue;
        fail_from(t, t->n_hashed, KM_EFORMAT);
        kvc_chunks_drop(&k->chunks, c->slot);
    }
}

/* Retires what is done and submits what has become possible. True: the transfer is finished. */
static bool advance(struct kvc_transfer *t)
{
    if (is_load(t)) {
        retire_checksums(t);
        int verified = t->n_hashed < t->first_failed ? t->n_hashed : t->first_failed;
        if (verified > t->n_submitted)
            submit_copies(t, verified);
        retire_copies(t);
    } else {
        retire_copies(t);
        retire_checksums(t);
    }
    return t->n_copied == t->n_submitted && t->n_hashed == t->n_hashing;
}

static int finish_load(struct kvc_transfer *t)
{
    struct kvc *k = t->kvc;
    int good = t->to;
    if (t->first_failed < t->n_chunks)
        good = t->chunk[t->first_failed].start > t->from ? t->chunk[t->first_failed].start : t->from;
    k->stats.loaded_tokens += good - t->from;
    k->stats.failed_loads += good < t->to;
    k->stats.load_ns += km_now_ns() - t->start_ns;
    for (int i = 0; i < t->n_chunks; i++)
        kvc_chunks_unref(&k->chunks, t->chunk[i].slot);
    if (t->seq)
        kvc_seq_unpin(t->seq);
    return good;
}

/* Publishes the chunks that succeeded. It does so from the last chunk to the first, so that the first becomes the
 * newest and the last chunks of a sequence are evicted first. */
static int finish_store(struct kvc_transfer *t)
{
    struct kvc *k = t->kvc;
    for (int i = t->n_chunks - 1; i >= 0; i--) {
        const struct chunk *c = &t->chunk[i];
        if (!c->n_copies) {
            kvc_chunks_touch(&k->chunks, c->slot);
            kvc_chunks_unref(&k->chunks, c->slot);
        } else if (i < t->first_failed) {
            kvc_chunks_publish(&k->chunks, c->slot, c->checksum.value);
            k->stats.stored_tokens += k->geometry.chunk_size;
        } else
            kvc_chunks_drop(&k->chunks, c->slot);
    }
    k->stats.store_ns += km_now_ns() - t->start_ns;
    return t->to;
}

/* Accounts for a finished transfer and frees it. Returns its error, or 0. */
static int finish(struct kvc_transfer *t, int *good)
{
    int rc = t->rc, n = is_load(t) ? finish_load(t) : finish_store(t);
    if (good)
        *good = n;
    km_free(t->copy);
    km_free(t);
    return rc;
}

static uint64_t open_ticket(struct kvc_transfer *t)
{
    struct kvc *k = t->kvc;
    while (k->transfers[t->index])
        t->index++;
    k->transfers[t->index] = t;
    k->n_transfers++;
    t->gen = ++k->transfer_gen;
    return (uint64_t)t->gen << 32 | ((uint32_t)t->index + 1);
}

static int close_ticket(struct kvc_transfer *t, int *good)
{
    t->kvc->transfers[t->index] = NULL;
    t->kvc->n_transfers--;
    return finish(t, good);
}

int kvc_transfer_start(struct kvc_transfer *t, int from, int to, uint64_t *ticket, int *good)
{
    t->from = from;
    t->to = to;
    t->first_failed = t->n_chunks;
    for (int i = 0; i < t->n_chunks && t->first_failed == t->n_chunks; i++) {
        if (is_load(t))
            submit_checksum(t);
        else if (i >= t->n_submitted) /* an asynchronous copier gets all chunks in one call */
            submit_copies(t, t->kvc->async_copies ? t->n_chunks : i + 1);
        if (!t->kvc->async_copies) /* finish this chunk before the next one evicts it from the CPU's cache */
            advance(t);
    }
    bool finished = advance(t);
    *ticket = finished ? 0 : open_ticket(t);
    return finished ? finish(t, good) : 0;
}

int kvc_transfer_poll(struct kvc *k, uint64_t ticket, int *good)
{
    uint32_t index = (uint32_t)ticket - 1;
    struct kvc_transfer *t = index < (uint32_t)k->cap_transfers ? k->transfers[index] : NULL;
    if (!t || t->gen != ticket >> 32) {
        if (good)
            *good = 0;
        return KM_EINVAL;
    }
    if (!advance(t))
        return 0;
    int rc = close_ticket(t, good);
    return rc < 0 ? rc : 1;
}

void kvc_transfer_forget_seq(struct kv_seq *s)
{
    const struct kvc *k = s->kvc;
    for (int i = 0, left = k->n_transfers; left > 0; i++)
        if (k->transfers[i]) {
            left--;
            if (k->transfers[i]->seq == s)
                k->transfers[i]->seq = NULL;
        }
}

bool kvc_transfer_drain(struct kvc *k)
{
    int64_t deadline = km_now_ns() + 10 * 1000000000LL;
    for (;;) {
        for (int i = 0; i < k->cap_transfers; i++)
            if (k->transfers[i] && advance(k->transfers[i]))
                close_ticket(k->transfers[i], NULL);
        if (!k->n_transfers)
            return true;
        if (km_now_ns() > deadline)
            return false;
        usleep(50);
    }
}

void kvc_transfer_count_refs(const struct kvc *k, int32_t *refs)
{
    for (int i = 0; i < k->cap_transfers; i++) {
        const struct kvc_transfer *t = k->transfers[i];
        for (int j = 0; t && j < t->n_chunks; j++)
            if (is_load(t) || !t->chunk[j].n_copies)
                refs[t->chunk[j].slot]++;
    }
}

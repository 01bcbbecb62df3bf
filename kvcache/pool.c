/* Two kinds of threads grow the pool. Touching threads map slabs and touch them piece by piece, each thread the next
 * piece of the same slab, so that slabs become complete in order and memory is taken only a little ahead. The keeper,
 * one thread, takes complete slabs in order, registers them with the device and makes their slots usable. It stays for
 * the pool's life, because an engine that attaches later needs the registrations again.
 *
 * Memory is touched by writes. MADV_POPULATE_WRITE would keep the lock of the address space for a whole piece, and a
 * thread that maps memory meanwhile would wait for about 10 ms.
 *
 * One lock protects all members that change, except `usable`, which is atomic. It is not held while memory is touched
 * or registered. A slab is mapped once; its address never changes, and is read without the lock for usable slots. */
#include "kvcache/pool.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/machine.h"
#include "base/mem.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#define PIECE ((size_t)16 << 20)    /* bytes that one thread touches at a time */
#define HUGE_PAGE ((size_t)2 << 20) /* a slab starts at a multiple, so that the kernel can use huge pages throughout */
enum { PAGE = 4096, TOUCH_MOST = 16, AHEAD = 2 /* slabs that are touched before the keeper has taken the last one */ };

struct slab {
    char *base;       /* [bytes]: the headers of all slots, then their payloads; NULL: not mapped */
    size_t bytes;
    size_t touched;   /* bytes that are touched */
    bool registered;  /* with the device */
    bool quarantined; /* a tier or a copier may still use it: never unmapped */
};

struct kvc_pool {
    const struct kvc_geometry *g;
    const char *root;      /* for km_available_memory */
    size_t payload_stride; /* bytes between payloads of a slab; 0: no payload */
    size_t slot_bytes;     /* header and payload; of a simulated device, the bytes that the payload would have */
    int n_slots, per_slab, n_slabs;
    struct slab *slab;     /* [n_slabs] */
    atomic_int usable;     /* slots */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* broadcast when a member below changes for which a thread may wait */
    struct kv_copier copier[KVC_POOL_ENGINES]; /* [n_copiers] of the engines that are attached */
    int n_copiers;
    bool registering;      /* the keeper is in a call of copier[0] */
    struct km_err refusal; /* of a registration: none is tried until all engines have detached; code 0: there is none */
    struct km_err reason;  /* why the pool is smaller than asked for; code 0: it is not */

    int target;            /* slabs that the pool shall have; n_slabs, or less if the machine has no more memory */
    int next;              /* slab of the next piece */
    size_t next_at;        /* offset of the next piece in it */
    int ready;             /* slabs [0, ready) are usable */
    bool done;             /* the pool has its final size */
    atomic_bool stop;      /* the pool is being closed */
    int64_t start_ns, grow_ns;
    pthread_t keeper, touch[TOUCH_MOST];
    bool started;          /* there is a keeper */
    int n_touch;           /* touching threads that were started and not joined */
};

static size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* Bytes between the payloads of a slab. */
static size_t payload_stride(const struct kvc_geometry *g)
{
    return round_up(g->payload_bytes, 64);
}

size_t kvc_pool_slot_bytes(const struct kvc_geometry *g)
{
    return g->header_bytes + payload_stride(g);
}

/* Slots of slab i. */
static int slab_slots(const struct kvc_pool *p, int i)
{
    const int left = p->n_slots - i * p->per_slab;
    return left < p->per_slab ? left : p->per_slab;
}

static int check_budget(int64_t n, size_t slot_bytes, int64_t budget, int64_t needed, int64_t available,
                        struct km_err *err)
{
    if (n < 1)
        return km_fail(err, KM_EINVAL,
                       "host memory for chunks is %s (max_local_cpu_size), but one chunk of this model is %s; raise "
                       "max_local_cpu_size, or lower chunk_size",
                       km_size_text(budget).s, km_size_text((int64_t)slot_bytes).s);
    if (n > INT_MAX / 4)
        return km_fail(err, KM_EINVAL, "host memory would hold %lld chunks, more than %d; raise chunk_size",
                       (long long)n, INT_MAX / 4);
    if (needed > available)
        return km_fail(err, KM_ENOMEM,
                       "host memory for chunks is to take %s (max_local_cpu_size), but only %s of memory are available "
                       "to this process; lower max_local_cpu_size, or free memory",
                       km_size_text(needed).s, km_size_text(available).s);
    return 0;
}

int kvc_pool_open(struct kvc_pool **out, const struct kvc_geometry *g, int64_t budget, const char *root,
                  size_t slab_bytes, struct km_err *err)
{
    *out = NULL;
    const size_t stride = payload_stride(g), slot_bytes = kvc_pool_slot_bytes(g);
    const int64_t n = budget / (int64_t)slot_bytes;
    int rc = check_budget(n, slot_bytes, budget, g->payload ? budget : n * (int64_t)g->header_bytes,
                          km_available_memory(root), err);
    if (rc)
        return rc;
    struct kvc_pool *p = km_calloc(1, sizeof *p);
    const int per_slab = slot_bytes >= slab_bytes ? 1 : (int)(slab_bytes / slot_bytes);
    const int n_slabs = ((int)n + per_slab - 1) / per_slab;
    struct slab *slab = km_calloc((size_t)n_slabs, sizeof *slab);
    if (!p || !slab) {
        km_free(p);
        km_free(slab);
        return km_fail(err, KM_ENOMEM, "out of memory for the table of %d slabs of host memory", n_slabs);
    }
    p->g = g;
    p->root = root;
    p->payload_stride = g->payload ? stride : 0;
    p->slot_bytes = slot_bytes;
    p->n_slots = (int)n;
    p->per_slab = per_slab;
    p->n_slabs = p->target = n_slabs;
    p->slab = slab;
    for (int i = 0; i < n_slabs; i++)
        slab[i].bytes = round_up((size_t)slab_slots(p, i) * (g->header_bytes + p->payload_stride), PAGE);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    *out = p;
    return 0;
}

/* Maps a slab at a multiple of HUGE_PAGE; NULL if the kernel refuses. */
static char *map(size_t bytes)
{
    const size_t extra = bytes < HUGE_PAGE ? 0 : HUGE_PAGE;
    char *p = mmap(NULL, bytes + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (extra) {
        const size_t head = (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
        if (head)
            munmap(p, head);
        p += head;
        if (extra - head)
            munmap(p + bytes, extra - head);
    }
    /* These calls are hints. Without huge pages, the pool grows more slowly. Chunks are of no use in a core file, and a
     * child process must not make the kernel copy pages that a device writes to. */
    madvise(p, bytes, MADV_HUGEPAGE);
    madvise(p, bytes, MADV_DONTDUMP);
    madvise(p, bytes, MADV_DONTFORK);
    km_mem_note(KM_MEM_HOST, (int64_t)bytes);
    return p;
}

/* Maps slab i, or says why not. Another slab's memory must remain for the rest of the process. */
static int map_slab(struct kvc_pool *p, int i, struct km_err *err)
{
    struct slab *s = &p->slab[i];
    const int64_t available = km_available_memory(p->root);
    if (available < (int64_t)(s->bytes + p->slab[0].bytes))
        return km_fail(err, KM_ENOMEM,
                       "host memory for chunks ends at %s, because only %s of memory are left to this process; lower "
                       "max_local_cpu_size, or free memory",
                       km_size_text((int64_t)i * p->per_slab * (int64_t)p->slot_bytes).s, km_size_text(available).s);
    s->base = map(s->bytes);
    if (!s->base)
        return km_fail(err, KM_ENOMEM,
                       "host memory for chunks ends at %s, because the kernel refused to map more (mmap); lower "
                       "max_local_cpu_size",
                       km_size_text((int64_t)i * p->per_slab * (int64_t)p->slot_bytes).s);
    return 0;
}

static void unmap_slab(struct slab *s)
{
    if (!s->base || s->quarantined)
        return;
    munmap(s->base, s->bytes);
    km_mem_note(s->registered ? KM_MEM_PINNED : KM_MEM_HOST, -(int64_t)s->bytes);
    s->base = NULL;
}

/* Ends growth at `target` slabs. The first reason is kept. */
static void give_up(struct kvc_pool *p, int target, const struct km_err *reason)
{
    if (target < p->target)
        p->target = target;
    if (!p->reason.code)
        p->reason = *reason;
    pthread_cond_broadcast(&p->changed);
}

/* Waits for the next piece and takes it: its slab, or -1 when there are no more. */
static int take_piece(struct kvc_pool *p, size_t *at, size_t *n)
{
    while (!p->stop && p->next < p->target && p->next > p->ready + AHEAD)
        pthread_cond_wait(&p->changed, &p->lock);
    if (p->stop || p->next >= p->target)
        return -1;
    const int i = p->next;
    struct slab *s = &p->slab[i];
    struct km_err err;
    if (!s->base && map_slab(p, i, &err)) {
        give_up(p, i, &err);
        return -1;
    }
    *at = p->next_at;
    *n = s->bytes - *at < PIECE ? s->bytes - *at : PIECE;
    p->next_at += *n;
    if (p->next_at == s->bytes) {
        p->next++;
        p->next_at = 0;
    }
    return i;
}

static void *touch_main(void *arg)
{
    struct kvc_pool *p = arg;
    size_t at, n;
    int i;
    pthread_mutex_lock(&p->lock);
    while ((i = take_piece(p, &at, &n)) >= 0) {
        volatile char *piece = p->slab[i].base + at;
        pthread_mutex_unlock(&p->lock);
        for (size_t b = 0; b < n; b += PAGE)
            piece[b] = 0;
        pthread_mutex_lock(&p->lock);
        p->slab[i].touched += n;
        if (p->slab[i].touched == p->slab[i].bytes)
            pthread_cond_broadcast(&p->changed);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* Registers slab i. The lock is held before and after, but not meanwhile. */
static void register_slab(struct kvc_pool *p, int i)
{
    struct slab *s = &p->slab[i];
    const struct kv_copier c = p->copier[0];
    struct km_err err = {0};
    p->registering = true;
    pthread_mutex_unlock(&p->lock);
    const int rc = c.host_register(c.self, s->base, s->bytes, &err);
    pthread_mutex_lock(&p->lock);
    p->registering = false;
    if (!rc) {
        s->registered = true;
        km_mem_note(KM_MEM_HOST, -(int64_t)s->bytes);
        km_mem_note(KM_MEM_PINNED, (int64_t)s->bytes);
    } else {
        p->refusal = err;
        p->refusal.code = rc;
        km_context(&p->refusal,
                   "the device registered only %s of host memory for chunks, so copies of the rest are slower (lower "
                   "max_local_cpu_size, or raise the limit of locked memory)",
                   km_size_text((int64_t)i * p->per_slab * (int64_t)p->slot_bytes).s);
    }
    pthread_cond_broadcast(&p->changed);
}

static bool registers(const struct kvc_pool *p)
{
    return p->n_copiers && p->copier[0].host_register && !p->refusal.code;
}

/* The first usable slab that an attached engine's device does not know, or -1. */
static int unregistered(const struct kvc_pool *p)
{
    if (registers(p))
        for (int i = 0; i < p->ready; i++)
            if (!p->slab[i].registered)
                return i;
    return -1;
}

/* Makes the next complete slab usable. */
static void publish(struct kvc_pool *p)
{
    const int i = p->ready;
    if (registers(p))
        register_slab(p, i);
    p->ready++;
    atomic_store_explicit(&p->usable, i * p->per_slab + slab_slots(p, i), memory_order_release);
    pthread_cond_broadcast(&p->changed);
}

/* Joins the touching threads, and unmaps slabs that will not become usable. */
static void end_growth(struct kvc_pool *p)
{
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_touch; i++)
        pthread_join(p->touch[i], NULL);
    pthread_mutex_lock(&p->lock);
    p->n_touch = 0;
    for (int i = p->ready; i < p->n_slabs; i++)
        unmap_slab(&p->slab[i]);
    p->grow_ns = km_now_ns() - p->start_ns;
    p->done = true;
    pthread_cond_broadcast(&p->changed);
}

static void give_up_threads(struct kvc_pool *p)
{
    struct km_err err;
    km_fail(&err, KM_EIO, "cannot start a thread that allocates host memory for chunks; the cache stores nothing");
    give_up(p, 0, &err);
}

/* Starts the touching threads. Half of the cores serve requests meanwhile. */
static void start_touching(struct kvc_pool *p)
{
    int n = km_usable_cores() / 2;
    n = n < 1 ? 1 : n > TOUCH_MOST ? TOUCH_MOST : n;
    while (p->n_touch < n && !pthread_create(&p->touch[p->n_touch], NULL, touch_main, p))
        p->n_touch++;
    if (!p->n_touch)
        give_up_threads(p);
}

static void *keeper_main(void *arg)
{
    struct kvc_pool *p = arg;
    pthread_mutex_lock(&p->lock);
    start_touching(p);
    while (!p->stop) {
        const struct slab *s = &p->slab[p->ready];
        int i;
        if (p->ready < p->target && s->base && s->touched == s->bytes)
            publish(p);
        else if (!p->done && p->ready >= p->target)
            end_growth(p);
        else if ((i = unregistered(p)) >= 0)
            register_slab(p, i);
        else
            pthread_cond_wait(&p->changed, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* Starts the keeper, with all signals blocked, so that the main thread handles them. */
static void start_keeper(struct kvc_pool *p)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    p->started = !pthread_create(&p->keeper, NULL, keeper_main, p);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (p->started)
        return;
    give_up_threads(p);
    p->done = true;
}

/* Grows the pool of a simulated device at once, so that its results do not depend on the time that growth takes: there
 * are only headers, which need not be touched. */
static void grow_simulated(struct kvc_pool *p)
{
    struct km_err err;
    for (int i = 0; i < p->target; i++) {
        if (map_slab(p, i, &err)) {
            give_up(p, i, &err);
            break;
        }
        p->ready = i + 1;
        atomic_store_explicit(&p->usable, i * p->per_slab + slab_slots(p, i), memory_order_release);
    }
    p->grow_ns = km_now_ns() - p->start_ns;
    p->done = true;
}

void kvc_pool_attach(struct kvc_pool *p, const struct kv_copier *copier)
{
    pthread_mutex_lock(&p->lock);
    if (p->n_copiers < KVC_POOL_ENGINES)
        p->copier[p->n_copiers++] = *copier;
    if (!p->start_ns) {
        p->start_ns = km_now_ns();
        if (p->g->payload)
            start_keeper(p);
        else
            grow_simulated(p);
    }
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

void kvc_pool_detach(struct kvc_pool *p, const struct kv_copier *copier)
{
    pthread_mutex_lock(&p->lock);
    int i = 0;
    while (i < p->n_copiers && p->copier[i].self != copier->self)
        i++;
    while (i == 0 && p->registering)
        pthread_cond_wait(&p->changed, &p->lock);
    if (i < p->n_copiers)
        memmove(&p->copier[i], &p->copier[i + 1], (size_t)(--p->n_copiers - i) * sizeof p->copier[0]);
    for (i = 0; !p->n_copiers && i < p->n_slabs; i++)
        if (p->slab[i].registered) {
            copier->host_unregister(copier->self, p->slab[i].base, p->slab[i].bytes);
            p->slab[i].registered = false;
            km_mem_note(KM_MEM_PINNED, -(int64_t)p->slab[i].bytes);
            km_mem_note(KM_MEM_HOST, (int64_t)p->slab[i].bytes);
        }
    if (!p->n_copiers)
        p->refusal = (struct km_err){0};
    pthread_mutex_unlock(&p->lock);
}

void kvc_pool_close(struct kvc_pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    if (p->started)
        pthread_join(p->keeper, NULL);
    for (int i = 0; i < p->n_touch; i++)
        pthread_join(p->touch[i], NULL);
    for (int i = 0; i < p->n_slabs; i++)
        unmap_slab(&p->slab[i]);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    km_free(p->slab);
    km_free(p);
}

int kvc_pool_slots(const struct kvc_pool *p)
{
    return p->n_slots;
}

int kvc_pool_usable(struct kvc_pool *p)
{
    return atomic_load_explicit(&p->usable, memory_order_acquire);
}

bool kvc_pool_growing(struct kvc_pool *p)
{
    pthread_mutex_lock(&p->lock);
    const bool growing = !p->done;
    pthread_mutex_unlock(&p->lock);
    return growing;
}

int kvc_pool_wait(struct kvc_pool *p, struct km_err *err)
{
    pthread_mutex_lock(&p->lock);
    while (p->start_ns && !p->done)
        pthread_cond_wait(&p->changed, &p->lock);
    const struct km_err *reason = p->reason.code ? &p->reason : &p->refusal;
    int rc = p->start_ns ? reason->code
                         : km_fail(err, KM_EINVAL, "host memory for chunks grows only when an engine is attached");
    if (reason->code && err)
        *err = *reason;
    pthread_mutex_unlock(&p->lock);
    return rc;
}

int64_t kvc_pool_bytes(struct kvc_pool *p)
{
    return kvc_pool_usable(p) * (int64_t)p->slot_bytes;
}

int64_t kvc_pool_unregistered(struct kvc_pool *p)
{
    int n = 0;
    pthread_mutex_lock(&p->lock);
    for (int i = 0; i < p->ready && p->refusal.code; i++)
        n += p->slab[i].registered ? 0 : slab_slots(p, i);
    pthread_mutex_unlock(&p->lock);
    return n * (int64_t)p->slot_bytes;
}

int64_t kvc_pool_grow_ns(struct kvc_pool *p)
{
    pthread_mutex_lock(&p->lock);
    const int64_t ns = p->done ? p->grow_ns : 0;
    pthread_mutex_unlock(&p->lock);
    return ns;
}

char *kvc_pool_payload(const struct kvc_pool *p, int slot)
{
    if (!p->payload_stride)
        return NULL;
    const int i = slot / p->per_slab;
    return p->slab[i].base + (size_t)slab_slots(p, i) * p->g->header_bytes +
           (size_t)(slot % p->per_slab) * p->payload_stride;
}

struct kvc_header *kvc_pool_header(const struct kvc_pool *p, int slot)
{
    char *at = p->slab[slot / p->per_slab].base + (size_t)(slot % p->per_slab) * p->g->header_bytes;
    return (struct kvc_header *)at;
}

void kvc_pool_quarantine(struct kvc_pool *p, int slot)
{
    pthread_mutex_lock(&p->lock);
    p->slab[slot / p->per_slab].quarantined = true;
    pthread_mutex_unlock(&p->lock);
}

/* Host memory that grows in the background: every slab becomes usable in order, is registered once, and is released,
 * whatever the device or the machine refuses, and whenever the engine leaves. */
#include "base/test/test.h"

#include "base/clock.h"
#include "base/mem.h"
#include "kvcache/pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

enum { SLOT = 4096 + 8192, SLAB = 3 * SLOT, MOST = 64 }; /* a slot's header and payload; 3 slots in a slab */

#define NO_LIMIT "/nowhere" /* a machine that states no limit of memory */
static char root[] = "/tmp/pool_test.XXXXXX";

/* A machine with so many bytes, whole KiB, of available memory; it can be changed at any time. */
static const char *machine(int64_t available)
{
    char path[64], now[64];
    snprintf(now, sizeof now, "%s/proc/meminfo.new", root);
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    FILE *f = fopen(now, "w");
    if (f) {
        fprintf(f, "MemTotal: 1 kB\nMemAvailable: %lld kB\n", (long long)available / 1024);
        fclose(f);
    }
    rename(now, path);
    return root;
}

static int make_root(void **state)
{
    char path[64];
    (void)state;
    if (!mkdtemp(root))
        return -1;
    snprintf(path, sizeof path, "%s/proc", root);
    return mkdir(path, 0700);
}

static int remove_root(void **state)
{
    char path[64];
    (void)state;
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    unlink(path);
    snprintf(path, sizeof path, "%s/proc", root);
    return rmdir(path) || rmdir(root);
}

struct device;

/* An engine on a device; several engines may use one device. */
struct engine {
    struct device *device;
    atomic_bool attached;
    struct kv_copier copier;
};

/* A device that records its registrations. Errors are counted, not asserted, because other threads call it. */
struct device {
    struct engine engine[2];
    pthread_mutex_t lock;
    struct {
        char *p;
        size_t size;
    } slab[MOST];          /* [n] registered now */
    int n, calls, releases; /* registrations now, calls of host_register and of host_unregister so far */
    int fail_at;           /* the call that fails (1: the first); 0: none */
    int short_at;          /* the call after which the machine has no more memory; 0: none */
    int sleep_ms;          /* time of each registration */
    atomic_bool hold;      /* registrations wait while it is set */
    atomic_int in_call, faults;
};

static void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

static int host_register(void *self, void *p, size_t size, struct km_err *err)
{
    struct engine *e = self;
    struct device *d = e->device;
    sigset_t blocked;
    atomic_fetch_add(&d->in_call, 1);
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    atomic_fetch_add(&d->faults, !sigismember(&blocked, SIGINT) || !sigismember(&blocked, SIGTERM));
    if (d->sleep_ms)
        sleep_ms(d->sleep_ms);
    while (atomic_load(&d->hold))
        sleep_ms(1);
    pthread_mutex_lock(&d->lock);
    if (d->calls + 1 == d->short_at)
        machine(2 * SLAB - 1024);
    int rc = ++d->calls == d->fail_at ? km_fail(err, KM_EDEVICE, "the fake device has no more") : 0;
    bool fault = !e->attached || (uintptr_t)p % 4096 || !size || size % 4096 || d->n == MOST;
    for (int i = 0; i < d->n; i++)
        fault |= (char *)p < d->slab[i].p + d->slab[i].size && d->slab[i].p < (char *)p + size; /* registered twice */
    for (size_t i = 0; i < size; i += 4096)
        ((volatile char *)p)[i] += 0; /* all of it is mapped */
    atomic_fetch_add(&d->faults, fault);
    if (!rc && !fault) {
        d->slab[d->n].p = p;
        d->slab[d->n++].size = size;
    }
    pthread_mutex_unlock(&d->lock);
    atomic_fetch_sub(&d->in_call, 1);
    return rc;
}

static void host_unregister(void *self, void *p, size_t size)
{
    struct engine *e = self;
    struct device *d = e->device;
    pthread_mutex_lock(&d->lock);
    int i = 0;
    while (i < d->n && (d->slab[i].p != p || d->slab[i].size != size))
        i++;
    atomic_fetch_add(&d->faults, i == d->n || !e->attached);
    if (i < d->n)
        d->slab[i] = d->slab[--d->n];
    d->releases++;
    pthread_mutex_unlock(&d->lock);
}

static void device_open(struct device *d)
{
    *d = (struct device){.n = 0};
    for (int i = 0; i < 2; i++)
        d->engine[i] = (struct engine){.device = d, .copier = {.self = &d->engine[i], .host_register = host_register,
                                                               .host_unregister = host_unregister}};
    pthread_mutex_init(&d->lock, NULL);
}

static int registered(struct device *d)
{
    pthread_mutex_lock(&d->lock);
    const int n = d->n;
    pthread_mutex_unlock(&d->lock);
    return n;
}

/* Chunks of one page of 8192 bytes. */
static struct kvc_geometry shape(bool payload)
{
    const struct kv_geom pool = {.n_layers = 8, .n_kv_heads = 2, .head_dim = 8, .block_size = 16, .dtype = KM_BF16,
                                 .layout = 1, .page_bytes = 8192, .n_pages = 8, .rope_theta = 1e6};
    struct kvc_geometry g;
    assert_int_equal(kvc_geometry_init(&g, &pool, 16, payload, NULL), 0);
    assert_int_equal(g.payload_bytes + g.header_bytes, SLOT);
    return g;
}

/* A pool of n slots, and the counts of memory before it was opened. */
struct rig {
    struct kvc_geometry g;
    struct kvc_pool *p;
    int64_t host, pinned;
};

static void rig_open(struct rig *r, int n)
{
    *r = (struct rig){.g = shape(true), .host = km_mem_stats(KM_MEM_HOST).current,
                      .pinned = km_mem_stats(KM_MEM_PINNED).current};
    assert_int_equal(kvc_pool_open(&r->p, &r->g, (int64_t)n * SLOT + SLOT - 1, NO_LIMIT, SLAB, NULL), 0);
    assert_int_equal(kvc_pool_slots(r->p), n);
}

static void rig_close(struct rig *r)
{
    kvc_pool_close(r->p);
    assert_int_equal(km_mem_stats(KM_MEM_HOST).current, r->host);
    assert_int_equal(km_mem_stats(KM_MEM_PINNED).current, r->pinned);
}

static int64_t pinned(const struct rig *r)
{
    return km_mem_stats(KM_MEM_PINNED).current - r->pinned;
}

static void attach(struct rig *r, struct engine *e)
{
    atomic_store(&e->attached, true);
    kvc_pool_attach(r->p, &e->copier);
}

/* The engine's device may be closed at once afterwards. */
static void detach(struct rig *r, struct engine *e)
{
    kvc_pool_detach(r->p, &e->copier);
    atomic_store(&e->attached, false);
}

/* Writes the slot's number to all bytes of its header and payload. */
static void fill(struct rig *r, int slot)
{
    memset(kvc_pool_header(r->p, slot), slot + 1, r->g.header_bytes);
    memset(kvc_pool_payload(r->p, slot), slot + 101, r->g.payload_bytes);
}

static bool holds(struct rig *r, int slot)
{
    const char *h = (const char *)kvc_pool_header(r->p, slot), *p = kvc_pool_payload(r->p, slot);
    for (size_t i = 0; i < r->g.header_bytes; i++)
        if (h[i] != (char)(slot + 1))
            return false;
    for (size_t i = 0; i < r->g.payload_bytes; i++)
        if (p[i] != (char)(slot + 101))
            return false;
    return true;
}

/* Waits until host_register has been called n times. */
static void await_calls(struct device *d, int n)
{
    for (int i = 0; i < 10000; i++) {
        pthread_mutex_lock(&d->lock);
        const int calls = d->calls;
        pthread_mutex_unlock(&d->lock);
        if (calls >= n && !atomic_load(&d->in_call))
            return;
        sleep_ms(1);
    }
    fail_msg("host_register was not called %d times", n);
}

static void await_usable(struct rig *r, int n)
{
    for (int i = 0; kvc_pool_usable(r->p) < n && i < 10000; i++)
        sleep_ms(1);
    assert_true(kvc_pool_usable(r->p) >= n);
}

static void budgets_are_checked_first(void **state)
{
    (void)state;
    struct kvc_geometry g = shape(true);
    struct kvc_pool *p;
    struct km_err err;
    const int64_t before = km_mem_stats(KM_MEM_HOST).current;
    assert_int_equal(kvc_pool_open(&p, &g, SLOT - 1, NO_LIMIT, SLAB, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "max_local_cpu_size"));
    assert_int_equal(kvc_pool_open(&p, &g, 0, NO_LIMIT, SLAB, &err), KM_EINVAL);
    assert_int_equal(kvc_pool_open(&p, &g, -1, NO_LIMIT, SLAB, &err), KM_EINVAL);
    assert_int_equal(kvc_pool_open(&p, &g, INT64_MAX, NO_LIMIT, SLAB, &err), KM_EINVAL); /* too many slots */
    assert_int_equal(kvc_pool_open(&p, &g, 10 * SLOT, machine(10 * SLOT - 1024), SLAB, &err), KM_ENOMEM);
    assert_non_null(strstr(err.msg, "available"));
    assert_null(p);
    assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
    assert_int_equal(kvc_pool_open(&p, &g, 10 * SLOT, machine(10 * SLOT), SLAB, &err), 0);
    assert_int_equal(kvc_pool_slots(p), 10);
    assert_int_equal(kvc_pool_usable(p), 0); /* it grows when an engine is attached */
    assert_true(kvc_pool_growing(p));
    assert_int_equal(kvc_pool_wait(p, &err), KM_EINVAL);
    kvc_pool_close(p);
    kvc_pool_close(NULL);
    assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
}

static void every_slot_has_its_own_memory(void **state)
{
    (void)state;
    for (int n = 1; n <= 7; n++) {
        struct rig r;
        struct device d;
        rig_open(&r, n);
        device_open(&d);
        attach(&r, &d.engine[0]);
        assert_int_equal(kvc_pool_wait(r.p, NULL), 0);
        assert_false(kvc_pool_growing(r.p));
        assert_true(kvc_pool_grow_ns(r.p) > 0);
        assert_int_equal(kvc_pool_usable(r.p), n);
        assert_int_equal(kvc_pool_bytes(r.p), n * SLOT);
        assert_int_equal(registered(&d), (n + 2) / 3);
        assert_int_equal(pinned(&r), n * SLOT);
        for (int i = 0; i < n; i++) {
            assert_int_equal((uintptr_t)kvc_pool_header(r.p, i) % 4096, 0);
            assert_int_equal((uintptr_t)kvc_pool_payload(r.p, i) % 4096, 0);
            fill(&r, i);
        }
        for (int i = 0; i < n; i++)
            assert_true(holds(&r, i));
        detach(&r, &d.engine[0]);
        assert_int_equal(registered(&d), 0);
        assert_int_equal(pinned(&r), 0);
        assert_int_equal(d.faults, 0);
        rig_close(&r);
    }
}

static void slots_become_usable_in_order(void **state)
{
    (void)state;
    struct rig r;
    struct device d;
    int seen = 0;
    rig_open(&r, 30);
    device_open(&d);
    d.sleep_ms = 3;
    attach(&r, &d.engine[0]);
    for (int last = 0, now; last < 30; last = now) {
        const bool growing = kvc_pool_growing(r.p);
        now = kvc_pool_usable(r.p);
        assert_true(now >= last && now <= 30 && (growing || now == 30));
        assert_true(now % 3 == 0);
        for (int i = last; i < now; i++)
            fill(&r, i);
        seen += now > last;
    }
    assert_true(seen > 3); /* the pool served while it grew */
    assert_int_equal(kvc_pool_wait(r.p, NULL), 0);
    for (int i = 0; i < 30; i++)
        assert_true(holds(&r, i)); /* growth did not touch usable slots again */
    detach(&r, &d.engine[0]);
    assert_int_equal(d.calls, 10);
    assert_int_equal(d.releases, 10);
    assert_int_equal(d.faults, 0);
    rig_close(&r);
}

/* While a registration takes long, only a few slabs are touched ahead of it. */
static void little_memory_is_taken_ahead(void **state)
{
    (void)state;
    struct rig r;
    struct device d;
    rig_open(&r, 90);
    device_open(&d);
    atomic_store(&d.hold, true);
    const int64_t before = km_mem_stats(KM_MEM_HOST).current;
    attach(&r, &d.engine[0]);
    sleep_ms(100);
    assert_int_equal(kvc_pool_usable(r.p), 0);
    const int64_t taken = km_mem_stats(KM_MEM_HOST).current - before;
    assert_true(taken >= SLAB && taken <= 4 * SLAB);
    atomic_store(&d.hold, false);
    assert_int_equal(kvc_pool_wait(r.p, NULL), 0);
    detach(&r, &d.engine[0]);
    assert_int_equal(d.faults, 0);
    rig_close(&r);
}

/* The pool gets its full size, and every slot serves. The slabs from the refused one on are not registered. */
static void a_refused_registration_does_not_end_growth(void **state)
{
    (void)state;
    for (int k = 1; k <= 5; k++) {
        struct rig r;
        struct device d;
        struct km_err err = {0};
        rig_open(&r, 15);
        device_open(&d);
        d.fail_at = k;
        attach(&r, &d.engine[0]);
        assert_int_equal(kvc_pool_wait(r.p, &err), KM_EDEVICE);
        assert_non_null(strstr(err.msg, "the fake device has no more"));
        assert_false(kvc_pool_growing(r.p));
        assert_int_equal(kvc_pool_usable(r.p), 15);
        assert_int_equal(kvc_pool_bytes(r.p), 15 * SLOT);
        assert_int_equal(kvc_pool_unregistered(r.p), (15 - 3 * (k - 1)) * SLOT);
        assert_int_equal(d.calls, k); /* the device is not asked again */
        assert_int_equal(registered(&d), k - 1);
        assert_int_equal(pinned(&r), (k - 1) * SLAB);
        assert_in_range(km_mem_stats(KM_MEM_HOST).current - r.host, (6 - k) * SLAB, (6 - k) * SLAB + SLAB - 1);
        for (int i = 0; i < 15; i++)
            fill(&r, i);
        for (int i = 0; i < 15; i++)
            assert_true(holds(&r, i));
        detach(&r, &d.engine[0]);
        assert_int_equal(d.releases, k - 1); /* the failed registration is not undone */
        assert_int_equal(d.calls, k);
        assert_int_equal(kvc_pool_unregistered(r.p), 0);
        /* The next engine's device takes all of it. */
        d.fail_at = 0;
        attach(&r, &d.engine[0]);
        await_calls(&d, k + 5);
        assert_int_equal(registered(&d), 5);
        assert_int_equal(kvc_pool_unregistered(r.p), 0);
        assert_int_equal(kvc_pool_wait(r.p, NULL), 0);
        detach(&r, &d.engine[0]);
        assert_int_equal(d.faults, 0);
        rig_close(&r);
    }
}

static void a_refused_mapping_ends_growth(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* a sanitizer needs more address space than the limit leaves */
#endif
    enum { BIG = 64 << 20 };
    struct rig r = {.g = shape(true), .host = km_mem_stats(KM_MEM_HOST).current,
                    .pinned = km_mem_stats(KM_MEM_PINNED).current};
    struct device d;
    struct km_err err = {0};
    struct rlimit old, low;
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld", &pages), 1);
    fclose(f);
    device_open(&d);
    assert_int_equal(kvc_pool_open(&r.p, &r.g, (int64_t)16 << 30, NO_LIMIT, BIG, NULL), 0);
    getrlimit(RLIMIT_AS, &old);
    low = old;
    low.rlim_cur = (rlim_t)pages * 4096 + 7 * (rlim_t)BIG; /* some of it is for the threads' stacks */
    setrlimit(RLIMIT_AS, &low);
    attach(&r, &d.engine[0]);
    const int rc = kvc_pool_wait(r.p, &err);
    setrlimit(RLIMIT_AS, &old);
    assert_int_equal(rc, KM_ENOMEM);
    const int usable = kvc_pool_usable(r.p), per_slab = BIG / SLOT;
    assert_true(usable >= per_slab && usable <= 7 * per_slab);
    assert_int_equal(usable % per_slab, 0);
    assert_int_equal(registered(&d), usable / per_slab);
    for (int i = 0; i < usable; i += per_slab / 2)
        fill(&r, i);
    detach(&r, &d.engine[0]);
    assert_int_equal(d.faults, 0);
    rig_close(&r);
}

/* The machine's memory goes to somebody else while the pool grows. */
static void growth_leaves_memory_to_others(void **state)
{
    (void)state;
    for (int k = 0; k <= 6; k += 2) {
        struct rig r = {.g = shape(true), .host = km_mem_stats(KM_MEM_HOST).current,
                        .pinned = km_mem_stats(KM_MEM_PINNED).current};
        struct device d;
        struct km_err err = {0};
        device_open(&d);
        assert_int_equal(kvc_pool_open(&r.p, &r.g, 30 * SLOT, machine(30 * SLOT), SLAB, NULL), 0);
        d.short_at = k;
        machine(k ? 30 * SLOT : 2 * SLAB - 1024);
        attach(&r, &d.engine[0]);
        assert_int_equal(kvc_pool_wait(r.p, &err), KM_ENOMEM);
        assert_non_null(strstr(err.msg, "only"));
        const int usable = kvc_pool_usable(r.p);
        assert_in_range(usable, 3 * k, 3 * k + 9); /* a few slabs are touched ahead of their registration */
        assert_int_equal(registered(&d), usable / 3);
        for (int i = 0; i < usable; i++)
            fill(&r, i);
        detach(&r, &d.engine[0]);
        assert_int_equal(d.faults, 0);
        rig_close(&r);
    }
}

static void chunks_stay_when_engines_change(void **state)
{
    (void)state;
    struct rig r;
    struct device d[3];
    rig_open(&r, 12);
    for (int i = 0; i < 3; i++)
        device_open(&d[i]);
    attach(&r, &d[0].engine[0]);
    assert_int_equal(kvc_pool_wait(r.p, NULL), 0);
    for (int i = 0; i < 12; i++)
        fill(&r, i);
    for (int round = 1; round < 4; round++) {
        struct device *now = &d[round % 3];
        detach(&r, &d[(round + 2) % 3].engine[0]);
        assert_int_equal(pinned(&r), 0);
        assert_int_equal(kvc_pool_usable(r.p), 12);
        attach(&r, &now->engine[0]);
        assert_int_equal(kvc_pool_usable(r.p), 12);
        await_calls(now, round == 3 ? 8 : 4);
        assert_int_equal(registered(now), 4);
        assert_int_equal(kvc_pool_wait(r.p, NULL), 0);
    }
    for (int i = 0; i < 12; i++)
        assert_true(holds(&r, i));
    detach(&r, &d[0].engine[0]);
    for (int i = 0; i < 3; i++)
        assert_int_equal(d[i].faults + d[i].n, 0);
    rig_close(&r);
}

static void shared_slabs_are_registered_once(void **state)
{
    (void)state;
    for (int leaves = 0; leaves < 2; leaves++) { /* which engine detaches while the pool grows */
        struct rig r;
        struct device d;
        rig_open(&r, 30);
        device_open(&d);
        d.sleep_ms = 2;
        attach(&r, &d.engine[0]);
        attach(&r, &d.engine[1]);
        await_usable(&r, 3);
        detach(&r, &d.engine[leaves]);
        assert_int_equal(kvc_pool_wait(r.p, NULL), 0);
        assert_int_equal(d.calls, 10);
        assert_int_equal(d.releases, 0);
        assert_int_equal(registered(&d), 10);
        detach(&r, &d.engine[!leaves]);
        assert_int_equal(d.releases, 10);
        assert_int_equal(d.faults, 0);
        rig_close(&r);
    }
}

static void an_engine_may_leave_while_the_pool_grows(void **state)
{
    (void)state;
    for (int after = 0; after <= 27; after += 3) {
        struct rig r;
        struct device d;
        rig_open(&r, 30);
        device_open(&d);
        d.sleep_ms = 2;
        attach(&r, &d.engine[0]);
        await_usable(&r, after);
        detach(&r, &d.engine[0]); /* no registration is running or follows */
        assert_int_equal(d.in_call, 0);
        assert_int_equal(registered(&d), 0);
        const int calls = d.calls;
        assert_int_equal(kvc_pool_wait(r.p, NULL), 0);
        assert_int_equal(kvc_pool_usable(r.p), 30);
        assert_int_equal(d.calls, calls);
        attach(&r, &d.engine[1]);
        await_calls(&d, calls + 10);
        assert_int_equal(registered(&d), 10);
        detach(&r, &d.engine[1]);
        assert_int_equal(d.faults, 0);
        rig_close(&r);
    }
}

static void closing_is_quick(void **state)
{
    (void)state;
    for (int round = 0; round < 20; round++) {
        struct rig r = {.g = shape(true), .host = km_mem_stats(KM_MEM_HOST).current,
                        .pinned = km_mem_stats(KM_MEM_PINNED).current};
        struct device d;
        device_open(&d);
        assert_int_equal(kvc_pool_open(&r.p, &r.g, (int64_t)64 << 30, NO_LIMIT, KVC_SLAB, NULL), 0);
        attach(&r, &d.engine[0]);
        sleep_ms(round);
        const int64_t t0 = km_now_ns();
        detach(&r, &d.engine[0]);
        rig_close(&r);
        assert_true(km_now_ns() - t0 < 1000000000);
        assert_int_equal(d.faults + d.n, 0);
    }
}

static void quarantined_memory_is_not_freed(void **state)
{
    (void)state;
    struct rig r;
    struct device d;
    unsigned char resident[SLAB / 4096];
    rig_open(&r, 9);
    device_open(&d);
    attach(&r, &d.engine[0]);
    assert_int_equal(kvc_pool_wait(r.p, NULL), 0);
    char *kept = (char *)kvc_pool_header(r.p, 3), *freed = (char *)kvc_pool_header(r.p, 0);
    kvc_pool_quarantine(r.p, 4);
    detach(&r, &d.engine[0]);
    assert_int_equal(registered(&d), 0);
    kvc_pool_close(r.p);
    assert_int_equal(km_mem_stats(KM_MEM_HOST).current - r.host, SLAB);
    assert_int_equal(km_mem_stats(KM_MEM_PINNED).current, r.pinned);
    assert_int_equal(mincore(kept, SLAB, resident), 0);
    assert_int_equal(mincore(freed, SLAB, resident), -1); /* not mapped */
    memset(kept, 1, SLAB); /* what a tier that is late may do */
    munmap(kept, SLAB);
    km_mem_note(KM_MEM_HOST, -SLAB);
}

/* A CPU needs no registration. */
static void a_device_without_registration_grows_too(void **state)
{
    (void)state;
    struct rig r;
    const struct kv_copier plain = {.payload = true};
    rig_open(&r, 10);
    kvc_pool_attach(r.p, &plain);
    assert_int_equal(kvc_pool_wait(r.p, NULL), 0);
    assert_int_equal(kvc_pool_usable(r.p), 10);
    assert_int_equal(pinned(&r), 0);
    for (int i = 0; i < 10; i++)
        fill(&r, i);
    kvc_pool_detach(r.p, &plain);
    rig_close(&r);
}

static void a_simulated_device_has_headers_only(void **state)
{
    (void)state;
    struct rig r = {.g = shape(false), .host = km_mem_stats(KM_MEM_HOST).current,
                    .pinned = km_mem_stats(KM_MEM_PINNED).current};
    const struct kv_copier plain = {.payload = false};
    const int64_t budget = 1000 * SLOT; /* the payloads count, although there are none */
    assert_int_equal(kvc_pool_open(&r.p, &r.g, budget, machine(1000 * 4096 - 1024), SLAB, NULL), KM_ENOMEM);
    assert_int_equal(kvc_pool_open(&r.p, &r.g, budget, machine(1000 * 4096 + 400 * 4096), SLAB, NULL), 0);
    assert_int_equal(kvc_pool_slots(r.p), 1000);
    kvc_pool_attach(r.p, &plain);
    assert_int_equal(kvc_pool_usable(r.p), 1000); /* at once: results do not depend on the wall clock */
    assert_false(kvc_pool_growing(r.p));
    assert_int_equal(kvc_pool_wait(r.p, NULL), 0);
    assert_int_equal(kvc_pool_bytes(r.p), budget);
    assert_in_range(km_mem_stats(KM_MEM_HOST).current - r.host, 1000 * 4096, 1000 * 4096 + (100 << 10));
    for (int i = 0; i < 1000; i++) {
        assert_null(kvc_pool_payload(r.p, i));
        memset(kvc_pool_header(r.p, i), i, r.g.header_bytes);
    }
    for (int i = 0; i < 1000; i++)
        assert_int_equal(((uint8_t *)kvc_pool_header(r.p, i))[4095], (uint8_t)i);
    kvc_pool_detach(r.p, &plain);
    rig_close(&r);
}

static void failed_allocations_are_errors(void **state)
{
    (void)state;
    const struct kvc_geometry g = shape(true);
    const int64_t before = km_mem_stats(KM_MEM_HOST).current;
    int failures = 0;
    for (;; failures++) {
        struct kvc_pool *p;
        km_mem_fail_at(failures + 1);
        const int rc = kvc_pool_open(&p, &g, 100 * SLOT, NO_LIMIT, SLAB, NULL);
        km_mem_fail_at(0);
        kvc_pool_close(p);
        assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
        if (!rc)
            break;
        assert_int_equal(rc, KM_ENOMEM);
        assert_null(p);
    }
    assert_int_equal(failures, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(budgets_are_checked_first),
        cmocka_unit_test(every_slot_has_its_own_memory),
        cmocka_unit_test(slots_become_usable_in_order),
        cmocka_unit_test(little_memory_is_taken_ahead),
        cmocka_unit_test(a_refused_registration_does_not_end_growth),
        cmocka_unit_test(a_refused_mapping_ends_growth),
        cmocka_unit_test(growth_leaves_memory_to_others),
        cmocka_unit_test(chunks_stay_when_engines_change),
        cmocka_unit_test(shared_slabs_are_registered_once),
        cmocka_unit_test(an_engine_may_leave_while_the_pool_grows),
        cmocka_unit_test(closing_is_quick),
        cmocka_unit_test(quarantined_memory_is_not_freed),
        cmocka_unit_test(a_device_without_registration_grows_too),
        cmocka_unit_test(a_simulated_device_has_headers_only),
        cmocka_unit_test(failed_allocations_are_errors),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}

/* A block counts with its malloc_usable_size (glibc). So no header is needed before a block, and a library such as
 * cJSON or libevent may free() it. */
#include "base/mem.h"

#include <malloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static _Atomic int64_t current[KM_MEM_KINDS], peak[KM_MEM_KINDS];
static _Atomic long fail_in; /* allocations until the one that fails; 0 or below: none fails */

void km_mem_note(enum km_mem_kind kind, int64_t delta)
{
    int64_t now = atomic_fetch_add_explicit(&current[kind], delta, memory_order_relaxed) + delta;
    int64_t was = atomic_load_explicit(&peak[kind], memory_order_relaxed);
    while (now > was &&
           !atomic_compare_exchange_weak_explicit(&peak[kind], &was, now, memory_order_relaxed, memory_order_relaxed))
        ;
}

struct km_mem_stats km_mem_stats(enum km_mem_kind kind)
{
    return (struct km_mem_stats){atomic_load(&current[kind]), atomic_load(&peak[kind])};
}

void km_mem_fail_at(long n)
{
    atomic_store(&fail_in, n);
}

/* True for the one allocation that a test makes fail. */
static int must_fail(void)
{
    if (atomic_load_explicit(&fail_in, memory_order_relaxed) <= 0)
        return 0;
    return atomic_fetch_sub(&fail_in, 1) == 1;
}

static void *counted(void *p)
{
    if (p)
        km_mem_note(KM_MEM_HOST, (int64_t)malloc_usable_size(p));
    return p;
}

void *km_malloc(size_t size)
{
    return must_fail() ? NULL : counted(malloc(size ? size : 1));
}

void *km_calloc(size_t n, size_t size)
{
    return must_fail() ? NULL : counted(calloc(n ? n : 1, size ? size : 1));
}

void *km_realloc(void *p, size_t size)
{
    if (must_fail())
        return NULL;
    int64_t old = p ? (int64_t)malloc_usable_size(p) : 0;
    void *q = realloc(p, size ? size : 1);
    if (q)
        km_mem_note(KM_MEM_HOST, (int64_t)malloc_usable_size(q) - old);
    return q;
}

void *km_reallocarray(void *p, size_t n, size_t size)
{
    size_t total;
    if (__builtin_mul_overflow(n, size, &total))
        return NULL;
    return km_realloc(p, total);
}

void *km_aligned(size_t align, size_t size)
{
    void *p = NULL;
    if (must_fail() || posix_memalign(&p, align < sizeof(void *) ? sizeof(void *) : align, size ? size : 1))
        return NULL;
    return counted(p);
}

char *km_strndup(const char *s, size_t n)
{
    char *p = km_malloc(n + 1);
    if (p) {
        memcpy(p, s, n);
        p[n] = 0;
    }
    return p;
}

char *km_strdup(const char *s)
{
    return km_strndup(s, strlen(s));
}

void km_free(void *p)
{
    if (!p)
        return;
    km_mem_note(KM_MEM_HOST, -(int64_t)malloc_usable_size(p));
    free(p);
}

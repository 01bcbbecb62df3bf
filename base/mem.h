/* The allocator of the whole tree. It counts bytes by kind of memory, so that a result can state what the run used.
 *
 * Host memory comes from km_malloc and the functions below it. Backends report other memory (pinned, device) with
 * km_mem_note. km_mem_fail_at makes the n-th host allocation fail, once: a test raises n until its scenario needs fewer
 * than n allocations, and so sees every allocation fail. */
#ifndef KM_MEM_H
#define KM_MEM_H

#include <stddef.h>
#include <stdint.h>

enum km_mem_kind { KM_MEM_HOST, KM_MEM_PINNED, KM_MEM_DEVICE, KM_MEM_KINDS };

struct km_mem_stats {
    int64_t current, peak; /* bytes now, and the most so far */
};

/* These return NULL if there is no memory, or if km_mem_fail_at chose this allocation. A size of 0 gives a pointer that
 * can be freed. */
void *km_malloc(size_t size);
void *km_calloc(size_t n, size_t size); /* NULL if n * size overflows */
void *km_realloc(void *p, size_t size);
void *km_reallocarray(void *p, size_t n, size_t size); /* NULL if n * size overflows */
void *km_aligned(size_t align, size_t size);           /* align: a power of two. Freed by km_free */
char *km_strdup(const char *s);
char *km_strndup(const char *s, size_t n);
void km_free(void *p); /* p may be NULL */

/* Counts memory of another allocator: delta bytes were allocated (> 0) or freed (< 0). Any thread may call it. */
void km_mem_note(enum km_mem_kind kind, int64_t delta);
struct km_mem_stats km_mem_stats(enum km_mem_kind kind);

/* The n-th host allocation from now (1: the next) fails, once, in the whole process. 0: none fails. */
void km_mem_fail_at(long n);

#endif

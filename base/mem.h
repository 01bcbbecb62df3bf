/* The one way to memory. Every byte is counted by kind, so that a result can say what the run held.
 *
 * Host memory goes through km_malloc and friends; backends that own other memory (pinned host,
 * device) report it with km_mem_note. km_mem_fail_at makes the n-th host allocation fail, once: the
 * tests of every library walk n upward until a scenario passes without reaching it. */
#ifndef KM_MEM_H
#define KM_MEM_H

#include <stddef.h>
#include <stdint.h>

enum km_mem_kind { KM_MEM_HOST, KM_MEM_PINNED, KM_MEM_DEVICE, KM_MEM_KINDS };

struct km_mem_stats {
    int64_t current, peak; /* bytes */
};

/* NULL when there is no memory (or a test said so); sizes of 0 give a unique pointer. */
void *km_malloc(size_t size);
void *km_calloc(size_t n, size_t size);                 /* n * size is checked for overflow */
void *km_realloc(void *p, size_t size);
void *km_reallocarray(void *p, size_t n, size_t size);  /* likewise */
void *km_aligned(size_t align, size_t size);            /* align: a power of two; freed by km_free */
char *km_strdup(const char *s);
char *km_strndup(const char *s, size_t n);
void km_free(void *p);                                  /* NULL is fine */

/* Memory that some other allocator gave (delta > 0) or took back (delta < 0). */
void km_mem_note(enum km_mem_kind kind, int64_t delta);
struct km_mem_stats km_mem_stats(enum km_mem_kind kind);

/* The n-th host allocation from now (1 = the next) fails, once; 0 switches this off. Process-wide. */
void km_mem_fail_at(long n);

#endif

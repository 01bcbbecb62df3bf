/* The index of the disk tier: which chunk files exist, how many bytes they have, and which is evicted next.
 *
 * The index covers the whole root folder. Files of other fingerprints (other models, or another chunk size) are
 * entries as well, because the limit of bytes and the eviction order include them. A file is identified by its folder
 * (an index in `folder`; 0 is the tier's own fingerprint) and its key. An entry is in one of these states:
 *   READY      the file exists under its final name
 *   DOOMED     the cleaner is to delete the file. Lookups do not find it, and its stamp is below all others
 *   UNLINKING  a thread is deleting the file
 *   WRITING    a PUT is writing a temporary file. Its bytes count as those of the final file
 * READY and DOOMED entries are in a binary heap by stamp: the top is deleted first. The stamp of a READY entry is the
 * time of its last use, in ns since 1970. It becomes the file's mtime, so that the order survives a restart.
 *
 * The index has no lock of its own. Entry numbers stay valid until disk_index_erase. */
#ifndef DISK_INDEX_H
#define DISK_INDEX_H

#include "base/hash.h"

#include <stdbool.h>
#include <stdint.h>

enum disk_state { DISK_UNUSED, DISK_READY, DISK_DOOMED, DISK_UNLINKING, DISK_WRITING };
#define DISK_STAMP_URGENT INT64_MIN       /* DOOMED, and a PUT of the same key waits for the deletion */
#define DISK_STAMP_DOOMED (INT64_MIN + 1)
enum { DISK_OWN = 0, DISK_FOLDERS_MOST = 65536 };

struct disk_entry {
    struct km_digest key;
    int64_t stamp;    /* ns since 1970 */
    uint32_t blocks;  /* of 4096 bytes */
    int32_t heap;     /* position in the heap; -1: not in it */
    int32_t next;     /* in its hash bucket, or in the list of unused entries; -1: the last */
    uint32_t seen;    /* number of the last scan that saw the file, or during or after which it was written */
    uint16_t folder;
    uint8_t state;    /* enum disk_state */
    bool discard;     /* WRITING: the chunk was removed meanwhile, so the PUT must not publish its file */
};

struct disk_index {
    struct disk_entry *entry;  /* [cap] */
    int32_t *bucket;           /* [mask + 1], -1: empty */
    int32_t *heap;             /* [n_heap] entry numbers */
    struct km_digest *folder;  /* [n_folders] fingerprints */
    uint32_t mask;
    int cap, used, n_heap, n_folders, free; /* entries allocated, in use, in the heap; head of the unused list */
    int own_ready;             /* READY entries of folder DISK_OWN */
    int64_t bytes;             /* of all entries */
    uint32_t scan;             /* number of the scan in progress, or of the last one */
};

/* fingerprint: of folder DISK_OWN. KM_ENOMEM. */
int disk_index_open(struct disk_index *x, const struct km_digest *fingerprint, struct km_err *err);
void disk_index_close(struct disk_index *x);

/* The folder's number; added if it is new. -1: no memory, or too many folders. */
int disk_index_folder(struct disk_index *x, const struct km_digest *fingerprint);
int32_t disk_index_find(const struct disk_index *x, int folder, const struct km_digest *key); /* -1: not there */
/* Adds an entry, READY or WRITING, whose key is not in the index. -1: no memory. */
int32_t disk_index_add(struct disk_index *x, int folder, const struct km_digest *key, int64_t bytes,
                       enum disk_state state, int64_t stamp);
void disk_index_erase(struct disk_index *x, int32_t i); /* its bytes no longer count */
/* Changes the state; READY and DOOMED put the entry into the heap with this stamp. */
void disk_index_set(struct disk_index *x, int32_t i, enum disk_state state, int64_t stamp);
/* Dooms every READY entry of the folder. */
void disk_index_doom_folder(struct disk_index *x, int folder);
int32_t disk_index_oldest(const struct disk_index *x); /* the heap's top, or -1 */
/* Host memory of an index of n entries, in bytes. */
int64_t disk_index_memory(int64_t n);
static inline int64_t disk_entry_bytes(const struct disk_entry *e)
{
    return (int64_t)e->blocks * 4096;
}

/* Checks buckets, heap, counts and bytes, for tests: NULL, or the first broken invariant. */
const char *disk_index_check(const struct disk_index *x);

#endif

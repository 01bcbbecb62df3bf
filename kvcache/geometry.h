/* The shape of a chunk: the geometry of the engine's KV pool, and how many of its pages make a chunk.
 *
 * A `kvc_geometry` is made and checked by kvc_geometry_init when an engine attaches. The cache (struct kvc) owns it.
 * Keys, pool, chunks and tiers borrow a pointer to it, and do not check it again. */
#ifndef KVC_GEOMETRY_H
#define KVC_GEOMETRY_H

#include "base/err.h"
#include "engine/kv_port.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KVC_CHUNK_MOST = 1 << 20 }; /* most tokens of a chunk */

struct kvc_geometry {
    struct kv_geom pool;  /* as the engine's backend published it */
    int chunk_size;       /* tokens of a chunk */
    int chunk_pages;      /* pages of a chunk: chunk_size / pool.block_size */
    size_t payload_bytes; /* bytes of a whole chunk's payload: chunk_pages * pool.page_bytes */
    size_t header_bytes;  /* bytes of a header (header.h) */
    uint32_t token_words; /* 64-bit words of a token's row of head_dim elements (base/page_sum.h) */
    bool payload;         /* false: the device is simulated, so there are no payload bytes anywhere */
};

/* KM_EINVAL if the pool's shape is impossible, if page_bytes is not what the shape needs, if a token's row is not a
 * multiple of 8 bytes, or if chunk_size is not a multiple of the block size from 1 to KVC_CHUNK_MOST. payload: as in
 * struct kv_copier. */
int kvc_geometry_init(struct kvc_geometry *g, const struct kv_geom *pool, int chunk_size, bool payload,
                      struct km_err *err);

#endif

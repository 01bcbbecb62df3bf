/* The shape of a chunk: the geometry of the engine's KV pool, and how many of its pages make a chunk.
 *
 * kvc_geometry_init makes and checks a `kvc_geometry` when an engine attaches, and nothing else does. The cache (struct
 * kvc) owns it. Keys, chunk store, DRAM tier and transfers borrow a pointer to it and check nothing again. */
#ifndef KVC_GEOMETRY_H
#define KVC_GEOMETRY_H

#include "base/err.h"
#include "engine/kv_port.h"

#include <stddef.h>

struct kvc_geometry {
    struct kv_geom pool; /* as the engine's backend published it */
    int chunk_size;      /* tokens of a chunk */
    int chunk_pages;     /* pages of a chunk: chunk_size / pool.block_size */
    size_t chunk_bytes;  /* chunk_pages * pool.page_bytes */
};

/* KM_EINVAL if the pool's shape is impossible, if page_bytes is not what the shape needs, or if chunk_size (at least 1)
 * is not a multiple of the block size. */
int kvc_geometry_init(struct kvc_geometry *g, const struct kv_geom *pool, int chunk_size, struct km_err *err);

#endif

/* The header of a stored chunk: what the chunk is, and the checksums of its pages.
 *
 * A header precedes the payload in every tier, and is in the same slot of host memory. Its size is a whole number of
 * 4096-byte blocks, so that a disk can be read and written with O_DIRECT. All integers are little-endian. After the
 * fixed part come the checksum of each page [n_pages] (base/page_sum.h) and the token ids [n_tokens].
 *
 * kvc_header_check decides alone whether the header that a tier has returned is accepted. It compares the header with
 * what was asked for, so that a wrong, old, foreign or damaged chunk is a miss. */
#ifndef KVC_HEADER_H
#define KVC_HEADER_H

#include "base/err.h"
#include "base/hash.h"
#include "kvcache/geometry.h"

#include <stdbool.h>
#include <stdint.h>

#define KVC_MAGIC 0x4b4e55484352564bu /* the bytes "KVRCHUNK" as a little-endian word */
enum { KVC_HEADER_VERSION = 2, KVC_HEADER_BLOCK = 4096 };
enum kvc_codec { KVC_RAW = 0 }; /* how the payload is encoded; a reader refuses a codec that it does not know */

struct kvc_header {
    uint64_t magic;
    uint32_t version, codec;      /* codec: enum kvc_codec */
    struct km_digest fingerprint; /* identity of the KV (struct kvc_keys) */
    struct km_digest key;
    uint32_t position;            /* number of chunks before this one in its sequence */
    uint32_t n_tokens;            /* valid tokens: chunk_size, or less in a partial last chunk */
    uint32_t n_pages;             /* pages of the payload: n_tokens / block_size, rounded up */
    uint32_t header_bytes;        /* of the whole header */
    uint64_t payload_bytes;       /* as stored; a raw payload has n_pages pages, or 0 bytes on a simulated device */
    uint64_t checksum;            /* XXH3-64 of the whole header with this field 0 */
    uint64_t body[];              /* [n_pages] checksums, then int32_t [n_tokens] ids, then zeros */
};

/* Bytes of a header for chunks of this size: a multiple of KVC_HEADER_BLOCK. */
size_t kvc_header_bytes(int chunk_size, int chunk_pages);

static inline uint64_t *kvc_header_sums(struct kvc_header *h)
{
    return h->body;
}
static inline int32_t *kvc_header_ids(struct kvc_header *h)
{
    return (int32_t *)(h->body + h->n_pages);
}

/* Fills the header of a raw chunk of n_tokens; the checksums are 0 until the caller sets them. */
void kvc_header_init(struct kvc_header *h, const struct kvc_geometry *g, const struct km_digest *fingerprint,
                     const struct km_digest *key, int position, const int32_t *ids, int n_tokens);
/* Computes the header's own checksum; call this when everything else is set. */
void kvc_header_seal(struct kvc_header *h);
/* True if the chunk has these token ids [n] and this position. An equal key alone does not prove it. */
bool kvc_header_match(const struct kvc_header *h, const int32_t *ids, int n, int position);
/* Checks a header of g->header_bytes that came from a tier: 0, or KM_EFORMAT and what is wrong. payload_bytes: the
 * length that the tier returned. */
int kvc_header_check(const struct kvc_header *h, const struct kvc_geometry *g, const struct km_digest *fingerprint,
                     const struct km_digest *key, size_t payload_bytes, struct km_err *err);

#endif

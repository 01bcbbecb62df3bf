/* Headers are read and written in the machine's byte order, which must be little-endian. */
#include "kvcache/header.h"

#include <string.h>
#define XXH_STATIC_LINKING_ONLY /* exposes XXH3_state_t, so that the state needs no allocation */
#include <xxhash.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "headers are little-endian");
_Static_assert(sizeof(struct kvc_header) == 112, "a stored header has no padding");

size_t kvc_header_bytes(int chunk_size, int chunk_pages)
{
    const size_t sums = (size_t)chunk_pages * sizeof(uint64_t), ids = (size_t)chunk_size * sizeof(int32_t);
    const size_t n = sizeof(struct kvc_header) + sums + ids;
    return (n + KVC_HEADER_BLOCK - 1) / KVC_HEADER_BLOCK * KVC_HEADER_BLOCK;
}

/* Pages that n tokens need. */
static uint32_t pages_of(const struct kvc_geometry *g, uint32_t n)
{
    const uint32_t block = (uint32_t)g->pool.block_size;
    return n / block + (n % block != 0);
}

/* Bytes of a raw payload of n_pages; 0 if the device is simulated. */
static uint64_t raw_bytes(const struct kvc_geometry *g, uint32_t n_pages)
{
    return g->payload ? (uint64_t)n_pages * g->pool.page_bytes : 0;
}

void kvc_header_init(struct kvc_header *h, const struct kvc_geometry *g, const struct km_digest *fingerprint,
                     const struct km_digest *key, int position, const int32_t *ids, int n_tokens)
{
    memset(h, 0, g->header_bytes);
    h->magic = KVC_MAGIC;
    h->version = KVC_HEADER_VERSION;
    h->codec = KVC_RAW;
    h->fingerprint = *fingerprint;
    h->key = *key;
    h->position = (uint32_t)position;
    h->n_tokens = (uint32_t)n_tokens;
    h->n_pages = pages_of(g, h->n_tokens);
    h->header_bytes = (uint32_t)g->header_bytes;
    h->payload_bytes = raw_bytes(g, h->n_pages);
    memcpy(kvc_header_ids(h), ids, (size_t)n_tokens * sizeof *ids);
}

/* The checksum of a header of `size` bytes; header_bytes is not used, because it may be wrong. */
static uint64_t checksum(const struct kvc_header *h, size_t size)
{
    static const uint64_t zero;
    XXH3_state_t state;
    XXH3_64bits_reset(&state);
    XXH3_64bits_update(&state, h, offsetof(struct kvc_header, checksum));
    XXH3_64bits_update(&state, &zero, sizeof zero);
    XXH3_64bits_update(&state, h->body, size - offsetof(struct kvc_header, body));
    return XXH3_64bits_digest(&state);
}

void kvc_header_seal(struct kvc_header *h)
{
    h->checksum = checksum(h, h->header_bytes);
}

bool kvc_header_match(const struct kvc_header *h, const int32_t *ids, int n, int position)
{
    const int32_t *own = (const int32_t *)(h->body + h->n_pages);
    return h->n_tokens == (uint32_t)n && h->position == (uint32_t)position &&
           !memcmp(own, ids, (size_t)n * sizeof *ids);
}

int kvc_header_check(const struct kvc_header *h, const struct kvc_geometry *g, const struct km_digest *fingerprint,
                     const struct km_digest *key, size_t payload_bytes, struct km_err *err)
{
    if (h->magic != KVC_MAGIC)
        return km_fail(err, KM_EFORMAT, "a chunk's header does not begin with the magic number; it is not a chunk");
    if (h->version != KVC_HEADER_VERSION)
        return km_fail(err, KM_EFORMAT, "a chunk's header has version %u, but this program reads version %d",
                       h->version, KVC_HEADER_VERSION);
    if (h->header_bytes != g->header_bytes)
        return km_fail(err, KM_EFORMAT, "a chunk's header has %u bytes, but chunks of this size have %zu",
                       h->header_bytes, g->header_bytes);
    if (h->checksum != checksum(h, g->header_bytes))
        return km_fail(err, KM_EFORMAT, "a chunk's header does not match its checksum; it was damaged");
    if (memcmp(&h->fingerprint, fingerprint, sizeof *fingerprint))
        return km_fail(err, KM_EFORMAT, "a chunk belongs to another model, or was computed in another way");
    if (memcmp(&h->key, key, sizeof *key))
        return km_fail(err, KM_EFORMAT, "a chunk has another key than the one that was asked for");
    if (h->codec != KVC_RAW)
        return km_fail(err, KM_EFORMAT, "a chunk has codec %u, which this program does not know", h->codec);
    if (h->n_tokens < 1 || h->n_tokens > (uint32_t)g->chunk_size || h->n_pages != pages_of(g, h->n_tokens))
        return km_fail(err, KM_EFORMAT, "a chunk has %u tokens in %u pages; chunks of this cache have 1 to %d tokens",
                       h->n_tokens, h->n_pages, g->chunk_size);
    if (h->payload_bytes != raw_bytes(g, h->n_pages))
        return km_fail(err, KM_EFORMAT, "a chunk of %u pages has %llu bytes, but %llu are needed", h->n_pages,
                       (unsigned long long)h->payload_bytes, (unsigned long long)raw_bytes(g, h->n_pages));
    if (payload_bytes != h->payload_bytes)
        return km_fail(err, KM_EFORMAT, "a tier returned %zu bytes of a chunk of %llu; it was cut short or replaced",
                       payload_bytes, (unsigned long long)h->payload_bytes);
    return 0;
}

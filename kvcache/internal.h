/* The definition of struct kvc. Only the files of kvcache/, its tests and its benchmark include this header. */
#ifndef KVC_INTERNAL_H
#define KVC_INTERNAL_H

#include "kvcache/checksum.h"
#include "kvcache/chunks.h"
#include "kvcache/dram.h"
#include "kvcache/geometry.h"
#include "kvcache/keys.h"
#include "kvcache/kvcache.h"
#include "kvcache/sequence.h"

struct kvc_transfer;

struct kvc {
    struct kvc_config cfg;
    struct kv_seq *seqs;             /* open sequences */
    struct kv_port_stats stats;      /* the counters; port_stats fills in the other members */
    int64_t checksum_ns;             /* time spent on checksums, over all threads */

    /* Valid from attach to detach. */
    bool attached;
    bool active;                     /* attached, and the DRAM tier is open: the parts below exist */
    struct kvc_geometry geometry;    /* the parts below borrow it */
    struct kv_copier copier;
    struct kvc_keys keys;
    struct kvc_chunks chunks;
    struct kvc_dram dram;
    struct kvc_checksum_pool checksums;

    /* Open transfers (transfer.c). A ticket is an index in this array and a generation number. */
    struct kvc_transfer **transfers; /* [cap_transfers], NULL where an entry is free */
    int n_transfers, cap_transfers;
    uint32_t transfer_gen;
    bool async_copies;               /* the copier has returned a ticket: copies run without the engine's thread */

    /* Set by tests and the benchmark. */
    size_t slab_bytes;               /* largest size of a slab in bytes: KVC_SLAB, or less in tests */
    bool skip_checksums;             /* compute no checksums: the benchmark measures their cost */
};

#endif

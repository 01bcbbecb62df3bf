/* What the files of kvcache/ share, and what its tests may look at. Nobody else includes this. */
#ifndef KVC_INTERNAL_H
#define KVC_INTERNAL_H

#include "kvcache/chunks.h"
#include "kvcache/dram.h"
#include "kvcache/keys.h"
#include "kvcache/kvcache.h"
#include "kvcache/checksum.h"

struct kvc_transfer;

struct kvc {
    struct kvc_config cfg;
    bool attached, active;     /* on: attached, and the DRAM tier is there */
    struct kv_geom geom;
    struct kv_copier copier;
    struct kvc_keys keys;
    struct kvc_dram dram;
    struct kvc_chunks chunks;
    struct kvc_checksum_pool checksums;
    bool async_copies;            /* the copier has given a ticket: its copies run beside the caller */
    size_t slab_bytes;      /* KVC_SLAB; tests take smaller ones */
    bool skip_checksums;        /* kvc_bench only: leaves checksums out, to show what they cost */
    struct kv_seq *seqs;
    struct kvc_transfer **transfers;   /* [cap_transfers], NULL where no ticket is open */
    int n_transfers, cap_transfers;      /* open tickets */
    uint32_t transfer_gen;
    struct kv_port_stats st; /* the counters; the levels are filled in when asked */
    int64_t checksum_ns;
};

struct kv_seq {
    struct kvc *kvc;
    struct kv_seq *prev, *next;
    struct km_digest root;
    struct km_digest *key; /* [cap]: the first n_keys are computed */
    int32_t *pin;          /* [cap]: the first n_pins chunks of the sequence are referenced */
    int n_keys, n_pins, cap;
    int kept;              /* chunks that stores have dealt with since the last lookup */
    bool dead;             /* the engine detached since */
};

void kvc_unpin(struct kv_seq *s);

#endif

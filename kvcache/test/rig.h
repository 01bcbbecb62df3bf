/* What the tests of the cache's port share: a cache, an engine's port, its fake device, and one sequence of tokens. */
#ifndef KVC_TEST_RIG_H
#define KVC_TEST_RIG_H

#include "base/test/test.h"

#include "kvcache/test/fake_pages.h"
#include "kvcache/test/fake_tier.h"
#include "kvcache/view.h"

enum { MAX_TOK = 2048, B = FAKE_B };

/* KV is computed into the pages of from[] and loaded into the pages of into[]. */
struct rig {
    struct fake_pages f;
    struct kvc_config cfg;
    struct kvc *k;
    struct kv_port p;
    int32_t tok[MAX_TOK];
    int32_t from[MAX_TOK / B], into[MAX_TOK / B];
    struct kv_port_stats st;
};

struct rig_opts {
    int chunk, slots;            /* tokens of a chunk; chunks in host memory */
    bool threads, no_payload;
    bool save_decode, save_unfull, no_local_cpu, fifo;
    int64_t throttle;
    bool refuse_register;        /* the device registers no host memory */
    struct fake_tier *tier[2];   /* NULL: none */
    const char *spec;            /* a tier as in --kv-cache, such as "disk=DIR:SIZE"; NULL: none */
};

void rig_open(struct rig *r, struct rig_opts o);
void rig_free(struct rig *r);
void rig_tokens(struct rig *r, int variant); /* another sequence of tokens */
void rig_check(struct rig *r);               /* kvc_check, and the statistics in r->st */

void rig_end_step(struct rig *r, uint64_t step); /* the device's steps up to this one have ended */
/* Waits for the ticket and returns the result of its operation. */
struct kv_result rig_wait(struct rig *r, uint64_t ticket);
/* Fills the pages of tokens [0, n), and stores them as a prompt of n tokens: returns once all is stored. */
void rig_store(struct rig *r, const char *salt, int n);
void rig_store_seq(struct rig *r, struct kv_seq *s, const char *salt, int n);
int rig_hit(struct rig *r, const char *salt, int n); /* what a lookup of a new sequence gives */
int rig_lookup(struct rig *r, struct kv_seq *s, int n); /* waits while the answer is KV_NOT_YET */
/* Allows copies to write to the pages of tokens [from, to), wipes all pages, and submits the load. */
uint64_t rig_begin_load(struct rig *r, struct kv_seq *s, int from, int to);
/* Checks the pages of a finished load of [from, to): right within the result, untouched outside the range. */
void rig_check_pages(struct rig *r, const char *salt, int n, int from, int to, struct kv_result res);
/* Loads tokens [from, to) and checks every page. */
struct kv_result rig_load(struct rig *r, struct kv_seq *s, const char *salt, int n, int from, int to);
/* Looks up n tokens in a new sequence and loads all that was found. */
struct kv_result rig_load_all(struct rig *r, const char *salt, int n);
/* The slot of chunk `chunk` of the sequence without a salt, or -1. */
int rig_slot(struct rig *r, const char *salt, int chunk);
double rig_row(struct rig *r, const char *tier, const char *name); /* value of a row of the statistics */

#endif

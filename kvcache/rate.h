/* A measured rate of transfers (copies, or GETs of a tier): bytes, divided by the time in which at least one transfer
 * is in flight. Times are in ns. The rate is an average over samples of about 1 ms. */
#ifndef KVC_RATE_H
#define KVC_RATE_H

#include <stdbool.h>
#include <stdint.h>

struct kvc_rate {
    double all_bytes, all_ns; /* sums over the samples so far; older samples have a lower weight */
    int64_t since;      /* start of the current sample; 0: not known, so the sample does not count */
    int64_t bytes;      /* bytes of the current sample */
    int n;              /* transfers in flight */
    bool whole;         /* no transfer was in flight when the current sample began */
};

#define KVC_RATE_FIRST 16e6   /* bytes: the assumed rate has the weight of a sample of this size */
#define KVC_RATE_WINDOW 512e6 /* bytes: all samples together have at most the weight of a sample of this size */
#define KVC_HOST_RATE 20e9    /* bytes per second: assumed rate of copies */
#define KVC_TIER_RATE 1e9     /* bytes per second: assumed rate of a tier's GETs */

static inline void kvc_rate_init(struct kvc_rate *r, double bytes_per_s)
{
    *r = (struct kvc_rate){.all_bytes = KVC_RATE_FIRST, .all_ns = KVC_RATE_FIRST * 1e9 / bytes_per_s};
}

/* True if a sample was taken. */
static inline bool kvc_rate_known(const struct kvc_rate *r)
{
    return r->all_bytes > KVC_RATE_FIRST;
}

/* The estimated time, in ns, to transfer this many bytes. */
static inline double kvc_rate_ns(const struct kvc_rate *r, double bytes)
{
    return bytes * r->all_ns / r->all_bytes;
}

/* A transfer starts. waits: it waits for a fence first. If it is the first in flight, the current sample then does not
 * count, because it would include the time of the wait. */
static inline void kvc_rate_begin(struct kvc_rate *r, int64_t now, bool waits)
{
    if (r->n++)
        return;
    r->since = waits ? 0 : now;
    r->bytes = 0;
    r->whole = true;
}

/* A transfer has ended. bytes: its size; < 0: it failed, and the current sample does not count. */
static inline void kvc_rate_end(struct kvc_rate *r, int64_t bytes)
{
    r->n--;
    if (bytes < 0)
        r->since = 0;
    r->bytes += bytes < 0 ? 0 : bytes;
}

/* Ends the current sample if it is at least 1 ms long. A shorter sample counts only if it covers all the time in which
 * transfers were in flight. Call this after kvc_rate_end for every transfer that has ended: if several are noticed at
 * once, their bytes belong to the same sample. */
static inline void kvc_rate_sample(struct kvc_rate *r, int64_t now)
{
    const int64_t sample_ns = 1000000, ns = now - r->since;
    if (!r->bytes)
        return;
    if (r->since && ns < sample_ns && (r->n || !r->whole)) {
        if (!r->n)
            r->bytes = 0; /* the sample is dropped: the time until the next transfer must not count */
        return;
    }
    if (r->since && ns > 0) {
        r->all_bytes += (double)r->bytes;
        r->all_ns += (double)ns;
        if (r->all_bytes > KVC_RATE_WINDOW) {
            r->all_ns *= KVC_RATE_WINDOW / r->all_bytes;
            r->all_bytes = KVC_RATE_WINDOW;
        }
    }
    r->since = now;
    r->bytes = 0;
    r->whole = false;
}

#endif

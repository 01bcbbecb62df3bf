/* A measured rate of transfers: bytes over the time in which at least one transfer is in flight. */
#ifndef KVC_RATE_H
#define KVC_RATE_H

#include <stdbool.h>
#include <stdint.h>

struct kvc_rate {
    double all_bytes, all_ns; /* of the samples so far, of which the older ones count less */
    int64_t since;      /* start of the current sample; 0: not known, so the sample does not count */
    int64_t bytes;      /* of the current sample */
    int n;              /* transfers in flight */
    bool whole;         /* nothing was in flight when the current sample began */
};

#define KVC_RATE_FIRST 16e6   /* the assumed rate counts as a sample of so many bytes */
#define KVC_RATE_WINDOW 512e6 /* samples count less when so many bytes have followed them */
#define KVC_HOST_RATE 20e9 /* bytes per second of copies, until some are measured */
#define KVC_TIER_RATE 1e9  /* bytes per second of a tier, until some are measured */

static inline void kvc_rate_init(struct kvc_rate *r, double bytes_per_s)
{
    *r = (struct kvc_rate){.all_bytes = KVC_RATE_FIRST, .all_ns = KVC_RATE_FIRST * 1e9 / bytes_per_s};
}

static inline bool kvc_rate_known(const struct kvc_rate *r)
{
    return r->all_bytes > KVC_RATE_FIRST;
}

/* The time, in ns, of so many bytes. */
static inline double kvc_rate_ns(const struct kvc_rate *r, double bytes)
{
    return bytes * r->all_ns / r->all_bytes;
}

/* A transfer starts. waits: it may have to wait for a fence first. */
static inline void kvc_rate_begin(struct kvc_rate *r, int64_t now, bool waits)
{
    if (r->n++)
        return;
    r->since = waits ? 0 : now;
    r->bytes = 0;
    r->whole = true;
}

/* A transfer of so many bytes has ended; bytes < 0: it failed, and the sample does not count. */
static inline void kvc_rate_end(struct kvc_rate *r, int64_t bytes)
{
    r->n--;
    if (bytes < 0)
        r->since = 0;
    r->bytes += bytes < 0 ? 0 : bytes;
}

/* Ends the sample if it is long enough. Called after all transfers that have ended were counted: if some were noticed
 * late, their bytes belong to the same time. A shorter sample counts only if it is a whole time of activity. */
static inline void kvc_rate_sample(struct kvc_rate *r, int64_t now)
{
    const int64_t sample_ns = 1000000, ns = now - r->since;
    if (!r->bytes)
        return;
    if (r->since && ns < sample_ns && (r->n || !r->whole)) {
        if (!r->n)
            r->bytes = 0; /* the time until the next transfer must not count */
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

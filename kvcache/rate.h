/* A measured rate of transfers: bytes over the time in which at least one transfer is in flight. */
#ifndef KVC_RATE_H
#define KVC_RATE_H

#include <stdbool.h>
#include <stdint.h>

struct kvc_rate {
    double bytes_per_s; /* average, in which a sample weighs more the more bytes it has */
    int64_t since;      /* start of the current sample; 0: not known, because the transfer waits for a fence */
    int64_t bytes;      /* of the current sample */
    int n;              /* transfers in flight */
};

enum { KVC_RATE_WEIGHT = 16 << 20 }; /* a sample of so many bytes counts as much as all before it */

/* A transfer starts. waits: it may have to wait for a fence first. */
static inline void kvc_rate_begin(struct kvc_rate *r, int64_t now, bool waits)
{
    if (r->n++)
        return;
    r->since = waits ? 0 : now;
    r->bytes = 0;
}

/* A transfer of so many bytes has ended; bytes < 0: it failed. */
static inline void kvc_rate_end(struct kvc_rate *r, int64_t now, int64_t bytes)
{
    const int64_t sample_ns = 1000000;
    r->n--;
    if (!r->since || bytes < 0) {
        r->since = now;
        r->bytes = 0;
        return;
    }
    r->bytes += bytes;
    const int64_t ns = now - r->since;
    if (ns <= 0 || (r->n && ns < sample_ns))
        return;
    const double weight = (double)r->bytes / ((double)r->bytes + KVC_RATE_WEIGHT);
    r->bytes_per_s += weight * ((double)r->bytes * 1e9 / (double)ns - r->bytes_per_s);
    r->since = now;
    r->bytes = 0;
}

#endif

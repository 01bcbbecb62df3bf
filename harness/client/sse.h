/* Server-sent events out of raw bytes, however the network cut them.
 *
 * Lines end with LF, CR or CRLF; an event is its `data` lines joined by LF and ends with an empty line;
 * comments and other fields are passed over. Bytes are never decoded here, so a character split between two
 * reads is whole again in the event. */
#ifndef SSE_H
#define SSE_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>

typedef void (*sse_fn)(void *arg, const char *data, size_t len);

struct sse {
    struct km_buf line; /* an unfinished line of an earlier feed */
    struct km_buf data; /* data lines of the event in progress, when they had to be kept */
    bool open;          /* the event in progress has data */
    bool cr;            /* the last byte was a CR: a LF that follows belongs to it */
    bool failed;        /* out of memory, or a line beyond SSE_MAX_EVENT */
};

enum { SSE_MAX_EVENT = 64 << 20 };

/* Calls fn for each event that these bytes complete. data is valid during the call. */
void sse_feed(struct sse *s, const char *bytes, size_t n, sse_fn fn, void *arg);
/* The stream is over: an event without its empty line is delivered. */
void sse_end(struct sse *s, sse_fn fn, void *arg);
void sse_reset(struct sse *s); /* for the next stream; memory kept */
void sse_free(struct sse *s);

#endif

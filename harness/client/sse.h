/* A parser for server-sent events, independent of how the network cut the bytes.
 *
 * Lines end with LF, CR or CRLF. An event is its `data` lines joined by LF; an empty line ends it. Comments and other
 * fields are skipped. Bytes are not decoded, so a character that is split between two reads is whole in the event. */
#ifndef SSE_H
#define SSE_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>

typedef void (*sse_fn)(void *arg, const char *data, size_t len);

enum { SSE_MAX_EVENT = 64 << 20 }; /* longest line and longest event, bytes */

struct sse {
    struct km_buf line; /* the unfinished line of earlier bytes */
    struct km_buf data; /* data lines of the current event, as far as they had to be copied */
    bool open;          /* the current event has a data line */
    bool cr;            /* the last byte was a CR, so a LF after it belongs to the same line end */
    bool failed;        /* no memory, or longer than SSE_MAX_EVENT; nothing more is parsed */
};

/* Calls fn for each event that these bytes complete. data is valid during the call only. */
void sse_feed(struct sse *s, const char *bytes, size_t n, sse_fn fn, void *arg);
/* The end of the stream: delivers the last event even if its empty line is missing. */
void sse_end(struct sse *s, sse_fn fn, void *arg);
void sse_reset(struct sse *s); /* for the next stream; memory is kept */
void sse_free(struct sse *s);

#endif

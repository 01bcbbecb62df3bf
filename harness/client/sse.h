/* A parser for server-sent events, independent of how the network cut the bytes.
 *
 * Lines end with LF, CR or CRLF. An event is its `data` lines joined by LF; an empty line ends it. Comments and other
 * fields are skipped. Bytes are not decoded, so a character that is split between two reads is whole in the event. */
#ifndef SSE_H
#define SSE_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>

/* Receives one event. data is valid during the call only. */
typedef void (*sse_fn)(void *arg, const char *data, size_t len);

enum { SSE_MAX_EVENT = 64 << 20 }; /* longest line and longest event, bytes */

struct sse {
    struct km_buf line; /* bytes of a line whose end has not arrived */
    struct km_buf data; /* data lines of the current event, unless they are borrowed (sse.c) */
    bool open;          /* the current event has a data line */
    bool cr;            /* the last byte was a CR, so a LF after it belongs to the same line end */
    bool failed;        /* no memory, or longer than SSE_MAX_EVENT; nothing more is parsed */
};

/* Parses the next n bytes of the stream, and calls fn for each event that they complete. */
void sse_feed(struct sse *s, const char *bytes, size_t n, sse_fn fn, void *arg);
/* Ends the stream: delivers the last event even if its empty line is missing. */
void sse_end(struct sse *s, sse_fn fn, void *arg);
void sse_reset(struct sse *s); /* prepares for the next stream; the buffers are reused */
void sse_free(struct sse *s);

#endif

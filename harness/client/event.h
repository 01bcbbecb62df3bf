/* One streamed JSON event of an OpenAI-compatible server, read without building a tree.
 *
 * A scan walks the text once and keeps slices into it; the text must outlive them. The same scan reads a
 * whole non-streamed answer, whose choices carry `message` instead of `delta`. */
#ifndef EVENT_H
#define EVENT_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>

struct ev_slice {
    const char *p; /* inside of a JSON string, still escaped; NULL: absent or null */
    size_t n;
};

struct ev {
    bool choices;              /* a non-empty array */
    struct ev_slice content;   /* delta.content, message.content or text */
    struct ev_slice reasoning; /* reasoning_content or reasoning */
    bool tool_calls;           /* not empty */
    struct ev_slice finish;    /* finish_reason */
    int listed;                /* tokens that token_ids or logprobs list; -1: neither is there */
    struct ev_slice ids;       /* inside of token_ids' brackets */
    int prompt_tokens, output_tokens, cached_tokens; /* usage; -1: not said */
    bool failed;               /* an error object, or an object that calls itself one */
    struct ev_slice message;   /* of the error */
};

/* 0, or -1 when the text is not one JSON object (cut off, malformed, nested deeper than 64). */
int ev_scan(const char *text, size_t len, struct ev *out);

/* Appends the characters that an escaped slice stands for. Lone surrogates become U+FFFD. */
void ev_text(struct ev_slice s, struct km_buf *out);

#endif

/* One JSON event of an OpenAI-compatible stream, read without building a tree.
 *
 * ev_scan goes through the text once and returns slices of it; the text must outlive them. It also reads a response
 * that was not streamed, where choices have `message` instead of `delta`. Only the first choice is read. */
#ifndef EVENT_H
#define EVENT_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>

struct ev_slice {
    const char *p; /* inside of a JSON string, still escaped; NULL: the key is absent or null */
    size_t n;
};

struct ev {
    bool choices;              /* there is a non-empty array of choices */
    struct ev_slice content;   /* delta.content, message.content or text */
    struct ev_slice reasoning; /* reasoning_content or reasoning */
    bool tool_calls;           /* there is a non-empty array of tool calls */
    struct ev_slice finish;    /* finish_reason */
    int listed;                /* length of token_ids or of logprobs, the longer; -1: neither is there */
    struct ev_slice ids;       /* text between the brackets of token_ids */
    int prompt_tokens, output_tokens, cached_tokens; /* usage; -1: not reported */
    bool failed;                                     /* there is an error, or the object's type is "error" */
    struct ev_slice message;                         /* message of the error */
};

/* Returns 0, or -1 when the text is not one JSON object: cut off, malformed, or nested deeper than 64. */
int ev_scan(const char *text, size_t len, struct ev *out);

/* Appends the characters of an escaped slice as UTF-8. A lone surrogate becomes U+FFFD. */
void ev_text(struct ev_slice s, struct km_buf *out);

#endif

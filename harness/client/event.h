/* One JSON event of an OpenAI-compatible stream, parsed without building a tree.
 *
 * ev_scan fills a `struct ev`. Its strings are slices of the text, which must outlive them. ev_scan also accepts a
 * response that was not streamed, where a choice has `message` instead of `delta`. Only the first choice is read. */
#ifndef EVENT_H
#define EVENT_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>

struct ev_slice {
    const char *p; /* [n] contents of a JSON string, still escaped; NULL: the key is absent or null */
    size_t n;      /* bytes */
};

struct ev {
    bool choices;              /* `choices` is an array that is not empty */
    struct ev_slice content;   /* delta.content, message.content or text */
    struct ev_slice reasoning; /* reasoning_content or reasoning */
    bool tool_calls;           /* `tool_calls` is an array that is not empty */
    struct ev_slice finish;    /* finish_reason */
    int listed;                /* tokens listed: length of token_ids or of logprobs, the longer one; -1: neither */
    struct ev_slice ids;       /* text between the brackets of token_ids */
    int prompt_tokens, output_tokens, cached_tokens; /* from usage; -1: not reported */
    bool failed;                                     /* the event reports an error: `error`, or `object` is "error" */
    struct ev_slice message;                         /* message of the error */
};

/* Returns 0, or -1 when the text is not one JSON object: cut off, malformed, or nested deeper than 64. */
int ev_scan(const char *text, size_t len, struct ev *out);

/* Appends the characters of an escaped slice as UTF-8. A lone surrogate becomes U+FFFD. */
void ev_text(struct ev_slice s, struct km_buf *out);

#endif

/* Parameters of a workload file with "filetype": "generate_conversations" (multi_turn.c). */
#ifndef WL_MULTI_TURN_H
#define WL_MULTI_TURN_H

#include "workloads/distribution.h"

struct wl_multi_turn {
    struct wl_distribution turns;  /* messages per conversation, answers included */
    struct wl_distribution common; /* tokens of the common prefix of all first messages; sampled once */
    struct wl_distribution prefix; /* tokens of a conversation's own prefix, in its first message */
    struct wl_distribution input;  /* tokens of a user message besides its prefixes */
    struct wl_distribution output; /* tokens of an answer */
};

#endif

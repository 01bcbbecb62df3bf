/* The parameters of a file of type "generate_conversations", as multi_turn.c reads and uses them. */
#ifndef WL_MULTI_TURN_H
#define WL_MULTI_TURN_H

#include "workloads/distribution.h"

struct wl_multi_turn {
    struct wl_distribution turns, common, prefix, input, output;
};

#endif

/* The parameters of a file of type "generate_conversations", as multiturn.c reads and uses them. */
#ifndef WL_MULTITURN_H
#define WL_MULTITURN_H

#include "workloads/law.h"

struct wl_multi_turn {
    struct wl_law turns, common, prefix, input, output;
};

#endif

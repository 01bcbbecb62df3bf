#include "harness/client/load_opts.h"

struct load load_defaults(void)
{
    return (struct load){.num_clients = 1, .early_stop = true, .burstiness = 1, .stream = true, .endpoint = LOAD_CHAT};
}

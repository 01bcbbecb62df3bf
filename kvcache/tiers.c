/* The registry of tiers. */
#include "kvcache/tier.h"

/* The names of all tiers. To add a tier, add its files to kvcache/tiers/ and its name to this list. One of the files
 * must define a `const struct kvc_tier_ops kvc_tier_NAME`. */
#define TIERS(X) X(disk)

#define DECLARE(name) extern const struct kvc_tier_ops kvc_tier_##name;
#define ADDRESS(name) &kvc_tier_##name,
TIERS(DECLARE)
static const struct kvc_tier_ops *const tiers[] = {TIERS(ADDRESS)};
enum { N_TIERS = sizeof tiers / sizeof *tiers };

const struct kvc_tier_ops *kvc_tier_at(int i)
{
    return i >= 0 && i < N_TIERS ? tiers[i] : NULL;
}

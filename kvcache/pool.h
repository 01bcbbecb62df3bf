/* Host memory for chunks, divided into slots. A slot has the header and the payload of one chunk.
 *
 * The memory is allocated in slabs by threads of the pool's own, from the first kvc_pool_attach on: a slab is mapped
 * (with huge pages where the kernel allows them), touched by several threads, and registered with the device. Slots
 * become usable slab by slab, in the order of their numbers, so that serving starts at once. If the machine gives less
 * memory than was asked for, the pool stays smaller. If the device refuses to register a slab, this slab and all later
 * ones stay unregistered: copies work, but are slower. kvc_pool_wait has the reason of both. On a simulated device
 * there are only headers, which are all usable when kvc_pool_attach returns.
 *
 * The pool outlives an engine: chunks stay when an engine detaches, but the device's registration ends. */
#ifndef KVC_POOL_H
#define KVC_POOL_H

#include "base/err.h"
#include "engine/kv_port.h"
#include "kvcache/geometry.h"
#include "kvcache/header.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVC_SLAB ((size_t)256 << 20) /* usual size of a slab in bytes; a slab of one slot may be larger */
enum { KVC_POOL_ENGINES = 16 };      /* most engines that are attached at a time */

struct kvc_pool; /* opaque */

/* budget: most bytes of all payloads and headers. root: where the machine states its memory, "" but in tests
 * (km_available_memory). A budget above the available memory fails with KM_ENOMEM before anything is allocated, and a
 * budget that is smaller than one slot with KM_EINVAL. The available memory is looked up again before each slab: growth
 * ends while as much as a slab is left, because the kernel would stop the process when it touches more than there is.
 * slab_bytes: KVC_SLAB, or less in tests. Borrows g and root until close. */
int kvc_pool_open(struct kvc_pool **out, const struct kvc_geometry *g, int64_t budget, const char *root,
                  size_t slab_bytes, struct km_err *err);
void kvc_pool_close(struct kvc_pool *p);

/* Bytes of one slot: header and payload, with what their alignment adds. For plans. */
size_t kvc_pool_slot_bytes(const struct kvc_geometry *g);

/* An engine attached: slabs are registered with its device, those that exist and those that follow. If several engines
 * share the pool, each new slab is registered once. The registrations end with the last kvc_pool_detach, through the
 * copier of that call. */
void kvc_pool_attach(struct kvc_pool *p, const struct kv_copier *copier);
void kvc_pool_detach(struct kvc_pool *p, const struct kv_copier *copier);

int kvc_pool_slots(const struct kvc_pool *p);   /* slots when the pool has its full size */
int kvc_pool_usable(struct kvc_pool *p);        /* slots [0, n) can be used now; rises to kvc_pool_slots, any thread */
bool kvc_pool_growing(struct kvc_pool *p);      /* more slots will become usable */
/* Waits until the pool has its final size, for tests and benchmarks; 0, or the reason why it is smaller
 * or not all registered with the devices of the attached engines. It has the reason at once when kvc_pool_growing is
 * false. KM_EINVAL before the first attach. */
int kvc_pool_wait(struct kvc_pool *p, struct km_err *err);
int64_t kvc_pool_bytes(struct kvc_pool *p);     /* of all usable slots */
int64_t kvc_pool_unregistered(struct kvc_pool *p); /* of all usable slots that the device has refused to register */
int64_t kvc_pool_grow_ns(struct kvc_pool *p);   /* from the first attach until the final size; 0: still growing */

/* A usable slot's payload [payload_bytes] (NULL without payload) and header [header_bytes]. */
char *kvc_pool_payload(const struct kvc_pool *p, int slot);
struct kvc_header *kvc_pool_header(const struct kvc_pool *p, int slot);

/* A slot whose buffer a tier never gave back: its slab is not freed at close. */
void kvc_pool_quarantine(struct kvc_pool *p, int slot);

#endif

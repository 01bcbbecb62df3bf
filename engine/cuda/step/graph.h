/* CUDA graphs of decode steps. There is one graph for each of a few numbers of requests.
 *
 * A decode step of a small batch has hundreds of short kernels. The host needs longer to launch them one by one than
 * the GPU needs to run them. A graph launches all of them with one call. There are graphs for 1, 2, 4, 8, 16, 24, ...
 * requests. A step is padded (cu_step_pad) to the smallest of these numbers that is not below its own. */
#ifndef CU_GRAPH_H
#define CU_GRAPH_H

#include "engine/cuda/step/arrays.h"

enum { CU_GRAPHS_MAX = 64, CU_GRAPH_MAX_REQS = 256 }; /* most graphs; most requests of a graph */

/* The graph of one number of requests. It is captured twice, because the two steps in flight use two buffers in pinned
 * memory, whose addresses are part of a graph. */
struct cu_graph {
    int reqs;                /* requests, padding included */
    cudaGraphExec_t exec[2]; /* of pinned buffer 0 and 1 */
};

struct cu_graphs {
    struct cu_graph graph[CU_GRAPHS_MAX]; /* [n], by rising number of requests */
    int n;
};

/* The callback that enqueues a decode step of `reqs` requests, all of them sampled. The arrays of the step are in
 * pinned buffer `buf`. */
typedef int (*cu_graph_enqueue)(void *self, int buf, int reqs, struct km_err *err);
/* Captures graphs for up to max_reqs requests: `enqueue` enqueues each step on stream s. Before a size is captured, one
 * step of that size runs uncaptured, so that kernels are loaded and cuBLASLt has chosen its algorithms. */
int cu_graphs_capture(struct cu_graphs *g, int max_reqs, cu_graph_enqueue enqueue, void *self, cudaStream_t s,
                      struct km_err *err);
void cu_graphs_free(struct cu_graphs *g);
/* Returns the smallest graph that can run the step, or NULL if there is none. The step must have one query token per
 * request and sample all of them. */
const struct cu_graph *cu_graphs_find(const struct cu_graphs *g, const struct batch *in);

#endif

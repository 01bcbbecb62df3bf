/* CUDA graphs of decode steps: one graph for each padded number of requests.
 *
 * A decode step of a small batch has hundreds of short kernels. Launching them one by one takes the host longer than
 * the GPU needs to run them; a graph launches all of them with one call. Graph sizes are 1, 2, 4, 8 and then every 8
 * requests; a step runs in the smallest graph that holds it, padded (cu_step_pad). */
#ifndef CU_GRAPH_H
#define CU_GRAPH_H

#include "engine/cuda/step/arrays.h"

enum { CU_GRAPHS_MAX = 64, CU_GRAPH_REQS = 256 }; /* graphs, and requests of the largest graph */

/* One size. Each size is captured twice, because the two steps in flight use two buffers in pinned memory. */
struct cu_graph {
    int reqs;
    cudaGraphExec_t exec[2]; /* of pinned buffer 0 and 1 */
};

struct cu_graphs {
    struct cu_graph graph[CU_GRAPHS_MAX]; /* [n], by rising size */
    int n;
};

/* Enqueues a decode step of `reqs` requests, all of them sampled, whose arrays are in pinned buffer `buf`. */
typedef int (*cu_graph_enqueue)(void *self, int buf, int reqs, struct km_err *err);
/* Captures graphs up to max_reqs requests from what `enqueue` puts on stream s. Before each capture one step runs
 * uncaptured: kernels are loaded, and cuBLASLt chooses its algorithms. */
int cu_graphs_capture(struct cu_graphs *g, int max_reqs, cu_graph_enqueue enqueue, void *self, cudaStream_t s,
                      struct km_err *err);
void cu_graphs_free(struct cu_graphs *g);
/* The graph that can run a step, or NULL: the step must have one query token per request, each of them sampled. */
const struct cu_graph *cu_graphs_find(const struct cu_graphs *g, const struct batch *in);

#endif

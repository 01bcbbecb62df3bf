/* Capture and lookup of CUDA graphs. */
#include "engine/cuda/step/graph.h"

static int capture_graph(struct cu_graph *g, cu_graph_enqueue enqueue, void *self, cudaStream_t s, struct km_err *err)
{
    int rc = enqueue(self, 0, g->reqs, err); /* uncaptured: see cu_graphs_capture */
    if (rc)
        return rc;
    CU_TRY(cudaStreamSynchronize(s));
    for (int buf = 0; buf < 2; buf++) {
        cudaGraph_t graph;
        CU_TRY(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
        rc = enqueue(self, buf, g->reqs, err);
        cudaError_t captured = cudaStreamEndCapture(s, &graph);
        if (rc)
            return rc;
        CU_TRY(captured);
        cudaError_t instantiated = cudaGraphInstantiate(&g->exec[buf], graph, 0);
        cudaGraphDestroy(graph);
        CU_TRY(instantiated);
        CU_TRY(cudaGraphUpload(g->exec[buf], s));
    }
    return 0;
}

int cu_graphs_capture(struct cu_graphs *g, int max_reqs, cu_graph_enqueue enqueue, void *self, cudaStream_t s,
                      struct km_err *err)
{
    int largest = max_reqs < CU_GRAPH_MAX_REQS ? max_reqs : CU_GRAPH_MAX_REQS;
    for (int n = 1; g->n < CU_GRAPHS_MAX; n = n < 8 ? 2 * n : n + 8) {
        struct cu_graph *next = &g->graph[g->n++];
        next->reqs = n < largest ? n : largest;
        int rc = capture_graph(next, enqueue, self, s, err);
        if (rc || n >= largest)
            return rc;
    }
    return 0;
}

void cu_graphs_free(struct cu_graphs *g)
{
    for (int i = 0; i < g->n; i++)
        for (cudaGraphExec_t e : g->graph[i].exec)
            if (e)
                cudaGraphExecDestroy(e);
    g->n = 0;
}

const struct cu_graph *cu_graphs_find(const struct cu_graphs *g, const struct batch *in)
{
    if (in->n_tokens != in->n_reqs || in->n_samples != in->n_reqs)
        return nullptr;
    for (int i = 0; i < g->n; i++)
        if (g->graph[i].reqs >= in->n_reqs)
            return &g->graph[i];
    return nullptr;
}

/* Benchmark of the CUDA backend's copier: rates of loads and stores, the host time of a call, registration of host
 * memory, and copies in the background while the engine runs steps.
 *
 * `struct cpb` is the host memory of a bench, and optionally one thread that makes traffic: copies without end in calls
 * of CPB_CALL pages, CPB_IN_FLIGHT calls at a time, as a cache layer makes them. The bench overwrites the last pages of
 * the pool with arbitrary numbers. */
#ifndef CPB_COPY_BENCH_H
#define CPB_COPY_BENCH_H

#include "engine/backend.h"

enum { CPB_CALL = 14, CPB_IN_FLIGHT = 5 }; /* 14 pages of qwen3-8b are 31.5 MiB */

enum cpb_traffic {
    CPB_NONE,
    CPB_RAW_LOADS, /* batch copies of the same pieces to other device memory, without checksums: for comparison */
    CPB_LOADS,
    CPB_STORES,
    CPB_BOTH,
    CPB_REGISTER, /* registers 32 MiB every 40 ms, as a cache layer does when it starts */
    CPB_TRAFFICS
};
extern const char *const cpb_traffic_names[CPB_TRAFFICS];

struct cpb;

/* Opens the bench for an open backend with this geometry. */
int cpb_open(struct cpb **out, const struct backend *backend, struct be *b, const struct kv_geom *g,
             struct km_err *err);
void cpb_close(struct cpb *c); /* no traffic is running */

/* Measures rates, host times and registration, and prints a row for each (figure.h). */
int cpb_measure(struct cpb *c, struct km_err *err);

/* Starts and stops the thread that makes traffic. cpb_stop returns the rate in GB/s, of both directions together. */
int cpb_start(struct cpb *c, enum cpb_traffic traffic, struct km_err *err);
int cpb_stop(struct cpb *c, double *gbps, struct km_err *err);

#endif

/* A run on disk: run.json, requests.csv, tokens.bin, env.json. Written once, whole; read back by compare and
 * report, offline. Schema "kvmark.run.1". */
#ifndef HZ_RUNFOLDER_H
#define HZ_RUNFOLDER_H

#include "base/json.h"
#include "harness/run/summary.h"
#include "harness/run/trace.h"
#include "workloads/workload.h"

/* Everything that is known about a run besides its trace. Borrowed strings. */
struct run_info {
    const char *workload, *workload_sha256, *workload_text;
    enum wl_kind workload_kind;
    int workload_requests;
    const char *target_kind;   /* "kvmark" or "external" */
    const char *target_url, *device, *model, *kv, *dtype;
    bool dummy_weights, simulated;
    const char *command;       /* argv, quoted so that it can be pasted */
    const char *commit;        /* of the build, "" unknown */
    const char *binary_sha256; /* "" unknown */
    const char *started;       /* ISO 8601 */
    const cJSON *options;      /* load and engine options as resolved, an object */
    const cJSON *server_metrics; /* counters of our engine over the measured phase; NULL for others */
    const cJSON *limits;       /* what the machine or a user's limit allows, an object; NULL: only what options say */
    const struct wl_set *set;  /* for the conversations' ids; NULL: none are written */
};

/* Creates dir (must not hold a run.json already, KM_EINVAL) and writes the four files; run.json last, so that a folder with
 * one is complete. */
int run_folder_write(const char *dir, const struct run_info *info, const struct hz_trace *t, const struct hz_summary *seed,
                 const struct hz_summary *strict, struct km_err *err);

struct run_folder {
    char *dir;
    cJSON *json;               /* run.json */
    struct hz_summary seed, strict;
    struct hz_trace trace;     /* from requests.csv and tokens.bin; texts are gone, and the clock begins at 1 s */
};
/* One answered request's TTFT, TPOT or E2E in ms under a profile; NAN: it has none. */
double run_folder_sample(const struct run_folder *run, const struct hz_rec *r, enum hz_sample what,
                         enum hz_profile profile);
int run_folder_read(struct run_folder *out, const char *dir, struct km_err *err);
void run_folder_free(struct run_folder *r);

#endif

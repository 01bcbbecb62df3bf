/* A run on disk: a folder with run.json (schema "kvmark.run.1"), requests.csv, tokens.bin and env.json.
 *
 * A folder is written once. run.json is written last and by rename, so a folder with a run.json is complete.
 * Comparisons and reports read it back offline. */
#ifndef HZ_RUNFOLDER_H
#define HZ_RUNFOLDER_H

#include "base/json.h"
#include "harness/run/summary.h"
#include "harness/run/trace.h"
#include "workloads/workload.h"

/* What is known about a run besides its trace. Everything is borrowed; NULL and "" mean unknown. */
struct run_info {
    const char *workload, *workload_sha256; /* name, and hash of the conversations that it made */
    const char *workload_text;              /* source of its words */
    enum wl_kind workload_kind;
    int workload_requests;
    const char *target_kind;                              /* "kvmark" or "external" */
    const char *target_url, *device, *model, *kv, *dtype; /* kv: the cache layer, "none" */
    bool dummy_weights, simulated;
    const char *command;         /* argv, quoted for a shell */
    const char *commit;          /* of the build */
    const char *binary_sha256;   /* of the program */
    const char *started;         /* ISO 8601 */
    const cJSON *options;        /* object: every option of load and engine as resolved */
    const cJSON *server_metrics; /* object: the server's counters over the run */
    const cJSON *limits;         /* object: limits of the engine that no option sets */
    const struct wl_set *set;    /* has the conversations' ids for requests.csv */
};

/* Creates dir and writes the four files. KM_EINVAL when dir has a run.json already. */
int run_folder_write(const char *dir, const struct run_info *info, const struct hz_trace *t,
                     const struct hz_summary *seed, const struct hz_summary *strict, struct km_err *err);
/* True if dir holds a run.json. */
bool run_folder_exists(const char *dir);

struct run_folder {
    char *dir;
    cJSON *json; /* run.json */
    struct hz_summary seed, strict;
    struct hz_trace trace; /* from requests.csv and tokens.bin; without texts, and with begin_ns = TF_BEGIN_NS */
};
/* KM_ENOENT: there is no run.json. KM_EFORMAT, KM_EINVAL: a file is damaged or has another schema. */
int run_folder_read(struct run_folder *out, const char *dir, struct km_err *err);
void run_folder_free(struct run_folder *r);

/* One request's TTFT, TPOT or E2E in ms under a profile; NAN: it has none. */
double run_folder_sample(const struct run_folder *run, const struct hz_rec *r, enum hz_sample what,
                         enum hz_profile profile);

#endif

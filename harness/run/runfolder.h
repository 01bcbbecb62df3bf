/* A run on disk: a folder with run.json (schema "kvmark.run.1"), requests.csv, tokens.bin and env.json.
 *
 * A `run_info` describes a run that is to be written; a `run_folder` is a run that was read back, for comparisons and
 * reports. A folder is written once. run.json is written last and by rename: a folder with a run.json is complete. */
#ifndef HZ_RUNFOLDER_H
#define HZ_RUNFOLDER_H

#include "base/json.h"
#include "harness/run/summary.h"
#include "harness/run/trace.h"
#include "workloads/workload.h"

/* The facts about a run that its trace does not have. Everything is borrowed. NULL and "" mean: not known. */
struct run_info {
    const char *workload;        /* wl_set.name */
    const char *workload_sha256; /* wl_set.sha256 */
    const char *workload_text;   /* wl_set.text */
    enum wl_kind workload_kind;
    int workload_requests;   /* requests of the whole workload */
    const char *target_kind; /* "kvmark" or "external" */
    const char *target_url;  /* NULL: kvmark started the engine itself */
    const char *device, *model, *dtype;
    const char *kv; /* the cache layer as --kv-cache names it: "none", "dram=..." */
    bool dummy_weights, simulated;
    const char *command;         /* the command line, quoted for a shell */
    const char *commit;          /* git commit of the build */
    const char *binary_sha256;   /* SHA-256 of the program file */
    const char *started;         /* wall-clock time, ISO 8601 */
    const cJSON *options;        /* object: the resolved values of all load and engine options */
    const cJSON *server_metrics; /* object: scrape_difference over the run */
    const cJSON *cache_tiers;    /* object: the same of scrape_tiers. NULL: no cache layer of kvmark's own engine */
    double cache_ready_s;        /* s that the run waited for the cache layer's host memory before it began */
    bool cache_complete;         /* the host memory had its final size when the run began */
    const cJSON *limits;         /* object: limits of the engine that no option sets */
    const struct wl_set *set;    /* for the column conversation_id of requests.csv */
};

/* Creates dir and writes the four files. KM_EINVAL: dir already has a run.json. */
int run_folder_write(const char *dir, const struct run_info *info, const struct hz_trace *t,
                     const struct hz_summary *seed, const struct hz_summary *strict, struct km_err *err);
/* True if dir holds a run.json. */
bool run_folder_exists(const char *dir);

struct run_folder {
    char *dir;
    cJSON *json;                    /* run.json */
    struct hz_summary seed, strict; /* as run.json has them, not computed again */
    struct hz_trace trace;          /* without texts and warm-up; begin_ns is TF_BEGIN_NS (tracefile.h) */
};
/* Reads everything but env.json. KM_ENOENT: there is no run.json. KM_EFORMAT, KM_EINVAL: a file is damaged or has
 * another schema. */
int run_folder_read(struct run_folder *out, const char *dir, struct km_err *err);
void run_folder_free(struct run_folder *r);

/* The TTFT, TPOT or E2E (`what`) of one request of the run, in ms, under a profile; NAN: the request has none. */
double run_folder_sample(const struct run_folder *run, const struct hz_rec *r, enum hz_sample what,
                         enum hz_profile profile);

#endif

/* The option tables, the memory plan, and the start and end of a serving process.
 *
 * serve_spawn forks, and therefore must be called before this process has threads. The child runs serve_run and writes
 * one struct to a pipe: that it is ready, or the error. */
#include "harness/cli/serve.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/mem.h"
#include "kvcache/kvcache.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct km_option model_rows[] = {
    {.name = "model",
     .letter = 'm',
     KM_FIELD(struct serve_opts, model),
     .arg = "DIR",
     .help = "Hugging Face folder, or a preset such as qwen3-8b, which has dummy weights"},
    {.name = "tokenizer",
     KM_FIELD(struct serve_opts, tokenizer),
     .arg = "DIR",
     .help = "folder of a tokenizer.json, or the file itself (default: the model's)"},
    {.name = "load-format",
     KM_FIELD_CHOICE(struct serve_opts, dummy_weights),
     .values = "auto|dummy",
     .fallback = "auto",
     .help = "dummy: weights made from --seed, not read from files"},
    {.name = "device",
     KM_FIELD(struct serve_opts, device),
     .arg = "DEV",
     .fallback = "auto",
     .help = "backend that runs the engine, such as cpu or cuda (kvmark info lists them); auto: a GPU if there is one"},
    {.name = "seed",
     KM_FIELD(struct serve_opts, seed),
     .arg = "N",
     .fallback = "0",
     .lo = 0,
     .hi = 9e15,
     .help = "seed of dummy weights, of sampling, and of generated workloads"},
    {.name = "batch-invariant",
     KM_FIELD(struct serve_opts, batch_invariant),
     .help = "answers that do not depend on the batch, bit for bit; not available in this version"},
};

int serve_option_groups(struct serve_opts *o, struct km_option_group *out)
{
    out[0] = KM_OPTION_GROUP("Model", model_rows, o);
    out[1] = eng_option_group(&o->engine);
    out[2] = kvo_option_group(&o->kv);
    out[3] = srv_option_group(&o->server);
    return SERVE_GROUPS;
}

static int check_options(const struct serve_opts *o, struct km_err *err)
{
    if (!o->model)
        return km_fail(err, KM_EINVAL, "--model is missing; give a Hugging Face folder or a preset such as qwen3-tiny");
    if (o->batch_invariant)
        return km_fail(err, KM_EINVAL, "--batch-invariant is not available in this version; leave it out");
    return 0;
}

static void fill_facts(const struct serve_opts *o, const struct backend *be, const struct kvo_choice *cache,
                       struct serve_facts *facts)
{
    facts->dummy_weights = o->dummy_weights;
    for (const char *const *p = mdl_presets(); *p; p++)
        facts->dummy_weights |= !strcmp(*p, o->model);
    snprintf(facts->device, sizeof facts->device, "%s", be->name);
    memcpy(facts->kv, cache->text, sizeof facts->kv);
}

int serve_check(const struct serve_opts *o, struct serve_facts *facts, struct km_err *err)
{
    const struct backend *be;
    struct kvo_choice cache;
    int rc = check_options(o, err);
    if (!rc)
        rc = backend_pick(o->device, &be, err);
    if (!rc)
        rc = kvo_choose(&o->kv, o->engine.block_size, false, &cache, err);
    if (!rc)
        fill_facts(o, be, &cache, facts);
    return rc;
}

/* Bytes of host memory that the cache layer takes, all tiers together. */
static int64_t cache_bytes(const struct kvc_plan *p, int n_tiers)
{
    int64_t n = p->slots * (int64_t)(p->payload_bytes + p->header_bytes) + p->index_bytes;
    for (int i = 0; i < n_tiers; i++)
        n += p->tier[i].host_bytes;
    return n;
}

/* Compares the host memory that the engine and the cache layer will take with what is available. engine: 0 for a
 * backend whose device has memory of its own. The cache layer makes this check, too, when it is attached to the engine.
 * But a backend on the host has not touched its KV pool by then, and memory that was not touched counts as
 * available. */
static int check_host_memory(int64_t engine, int64_t layer, int64_t available, struct km_err *err)
{
    if (engine + layer <= available)
        return 0;
    char both[64] = "";
    if (engine)
        snprintf(both, sizeof both, "the engine takes %s of memory and ", km_size_text(engine).s);
    return km_fail(err, KM_ELIMIT,
                   "%sthe cache layer takes %s%s, but only %s are available to this process; give the cache layer less "
                   "(--kv-cache, or max_local_cpu_size)%s",
                   both, km_size_text(layer).s, engine ? "" : " of memory", km_size_text(available).s,
                   engine ? ", or the engine (--gpu-memory-limit)" : "");
}

int serve_make_plan(const struct serve_opts *o, struct serve_plan *out, struct km_err *err)
{
    const struct backend *be;
    struct mdl *m = NULL;
    struct km_err why;
    memset(out, 0, sizeof *out);
    int rc = check_options(o, err);
    if (!rc)
        rc = backend_pick_plan(o->device, &be, err);
    if (!rc && backend_fell_back(o->device, be, &why))
        km_log(KM_LOG_WARN, "planning for the CPU: %s", why.msg);
    if (!rc)
        rc = kvo_choose(&o->kv, o->engine.block_size, true, &out->kv, err);
    if (!rc)
        rc = mdl_open(&m, o->model, o->dummy_weights, (uint64_t)o->seed, err);
    if (!rc) {
        out->available = km_available_memory("");
        fill_facts(o, be, &out->kv, &out->facts);
        snprintf(out->model, sizeof out->model, "%s", mdl_name(m));
        out->engine = o->engine;
        rc = eng_plan(&out->mem, &out->engine, m, be, err);
    }
    if (!rc) {
        out->token_bytes = (int64_t)out->mem.geom.page_bytes / out->engine.block_size;
        if (out->kv.on)
            rc = kvc_plan(&out->kv.config, &out->mem.geom, &out->cache, err);
    }
    if (!rc && out->kv.on && out->mem.limited == KM_MEM_HOST && !be->no_payload)
        rc = check_host_memory(plan_total(&out->mem, KM_MEM_HOST), cache_bytes(&out->cache, out->kv.config.n_tiers),
                               out->available, err);
    out->fits = !rc;
    mdl_free(m);
    return rc;
}

/* Makes the check of check_host_memory before the engine is opened. A backend with a probe has a device with memory of
 * its own, and is not planned, because that takes time. */
static int check_before_open(const struct serve_opts *o, const struct backend *be, const struct mdl *m,
                             const struct kvo_choice *kv, struct km_err *err)
{
    struct plan mem;
    struct kvc_plan cache;
    struct eng_opts copy = o->engine;
    int64_t available = km_available_memory("");
    if (!kv->on || be->no_payload)
        return 0;
    if (be->probe)
        return check_host_memory(0, kv->config.max_local_cpu, available, err);
    int rc = eng_plan(&mem, &copy, m, be, err);
    if (!rc)
        rc = kvc_plan(&kv->config, &mem.geom, &cache, err);
    return rc ? rc
              : check_host_memory(plan_total(&mem, KM_MEM_HOST), cache_bytes(&cache, kv->config.n_tiers), available,
                                  err);
}

/* The objects of a serving process, in the order in which they are opened. */
struct service {
    struct mdl *mdl;
    struct tok *tok;     /* NULL: only token ids are served */
    struct kvc *kvc;     /* NULL: no cache layer */
    struct kv_port port; /* of kvc */
    struct eng *eng;
    struct srv *srv;
    pthread_t watcher;   /* watch_memory */
    bool watched;        /* the watcher runs */
    atomic_bool closing;
};

/* Waits until the cache layer's memory has its final size, and warns if that is less than was asked for. */
static void *watch_memory(void *arg)
{
    struct service *p = arg;
    struct km_err why;
    while (!kvc_memory_ready(p->kvc, &why)) {
        if (p->closing)
            return NULL;
        usleep(50000);
    }
    if (why.code)
        km_log(KM_LOG_WARN, "%s", why.msg);
    return NULL;
}

/* Starts the watcher with all signals blocked, so that the main thread handles them. Without it only the warning is
 * missing. */
static void start_watcher(struct service *p)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    p->watched = !pthread_create(&p->watcher, NULL, watch_memory, p);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void close_service(struct service *p)
{
    p->closing = true;
    if (p->watched)
        pthread_join(p->watcher, NULL);
    srv_free(p->srv);
    eng_close(p->eng);
    kvc_free(p->kvc);
    tok_free(p->tok);
    mdl_free(p->mdl);
}

static int open_tokenizer(const struct serve_opts *o, struct service *p, struct km_err *err)
{
    const char *path = o->tokenizer ? o->tokenizer : mdl_dir(p->mdl);
    int rc = path ? tok_open(&p->tok, path, err) : KM_ENOENT;
    if (rc == KM_ENOENT && !o->tokenizer) {
        km_log(KM_LOG_WARN,
               "model %s has no tokenizer.json, so only token ids are served, not text; --tokenizer DIR adds one",
               o->model);
        return 0;
    }
    int32_t ids = rc ? 0 : tok_total(p->tok), vocab = mdl_config(p->mdl)->vocab;
    if (ids > vocab)
        return km_fail(err, KM_EINVAL,
                       "tokenizer %s has %d ids, but model %s has a vocabulary of %d; give the model's own tokenizer",
                       path, ids, o->model, vocab);
    return rc;
}

static void log_engine(const struct service *p, const char *cache)
{
    const struct eng_opts *o = eng_options(p->eng);
    struct eng_stats st;
    eng_stats(p->eng, &st);
    km_log(KM_LOG_INFO,
           "%s%s, %s, on %s: weights %s, workspace %s, KV pool %s (%d blocks of %d tokens, %d tokens), context %d "
           "tokens, cache layer: %s",
           mdl_name(p->mdl), mdl_is_dummy(p->mdl) ? " (dummy weights)" : "", km_dtype_name((enum km_dtype)o->dtype),
           st.be.device, km_size_text(st.be.weight_bytes).s, km_size_text(st.be.workspace_bytes).s,
           km_size_text(st.be.kv_bytes).s, o->num_blocks, o->block_size, o->num_blocks * o->block_size,
           o->max_model_len, cache);
}

static int open_service(const struct serve_opts *o, struct service *p, struct km_err *err)
{
    const struct backend *be;
    struct kvo_choice cache;
    struct km_err why;
    int rc = backend_pick(o->device, &be, err);
    if (!rc && backend_fell_back(o->device, be, &why))
        km_log(KM_LOG_WARN, "running on the CPU: %s", why.msg);
    if (!rc)
        rc = kvo_choose(&o->kv, o->engine.block_size, true, &cache, err);
    if (!rc)
        rc = mdl_open(&p->mdl, o->model, o->dummy_weights, (uint64_t)o->seed, err);
    if (!rc)
        rc = open_tokenizer(o, p, err);
    if (!rc)
        rc = check_before_open(o, be, p->mdl, &cache, err);
    if (!rc && cache.on && !(rc = kvc_open(&p->kvc, &cache.config, err)))
        rc = kvc_port(p->kvc, &p->port, err);
    if (!rc)
        rc = eng_open(&p->eng, &o->engine, p->mdl, be, cache.on ? &p->port : NULL, err);
    if (rc)
        return rc;
    struct srv_opts s = o->server;
    s.seed = o->seed;
    s.device = be->name;
    s.kv = cache.text;
    rc = srv_open(&p->srv, &s, p->eng, p->tok, err);
    if (!rc)
        log_engine(p, cache.text);
    return rc;
}

int serve_run(const struct serve_opts *o, double cache_wait_s, void (*ready)(void *arg, const struct serve_ready *r),
              void *arg, struct km_err *err)
{
    struct service p = {0};
    int rc = open_service(o, &p, err);
    if (!rc) {
        struct serve_ready r = {.port = srv_port(p.srv), .cache_complete = true};
        if (p.kvc) {
            int64_t start = km_now_ns();
            start_watcher(&p);
            r.cache_complete = kvc_settle(p.kvc, cache_wait_s);
            r.cache_wait_s = (double)(km_now_ns() - start) / 1e9;
        }
        if (ready)
            ready(arg, &r);
        rc = srv_run(p.srv, true, err);
    }
    close_service(&p);
    return rc;
}

/* The message that the child writes to the pipe, once. */
struct child_report {
    struct serve_ready ready;
    struct km_err err; /* err.code is 0 if the port is bound */
};

static void report_ready(void *arg, const struct serve_ready *ready)
{
    struct child_report r = {.ready = *ready};
    int *fd = arg;
    if (write(*fd, &r, sizeof r) != (ssize_t)sizeof r)
        km_log(KM_LOG_ERROR, "the engine's process cannot report its port: %s", strerror(errno));
    close(*fd);
    *fd = -1;
}

static _Noreturn void run_child(const struct serve_opts *o, int fd, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(1);
    signal(SIGINT, SIG_IGN); /* Ctrl-C also reaches the parent, which then ends this process */
    struct serve_opts mine = *o;
    mine.server.port = 0;
    struct child_report r = {0};
    int rc = serve_run(&mine, SERVE_CACHE_WAIT_S, report_ready, &fd, &r.err);
    if (rc && fd >= 0 && write(fd, &r, sizeof r) != (ssize_t)sizeof r)
        rc = KM_EIO;
    else if (rc && fd < 0)
        km_log(KM_LOG_ERROR, "engine: %s", r.err.msg);
    exit(rc ? 1 : 0);
}

/* "signal 9" or "exit status 1" */
static void describe_end(int status, char out[32])
{
    if (WIFSIGNALED(status))
        snprintf(out, 32, "signal %d", WTERMSIG(status));
    else
        snprintf(out, 32, "exit status %d", WEXITSTATUS(status));
}

int serve_spawn(const struct serve_opts *o, pid_t *pid, struct serve_ready *ready, struct km_err *err)
{
    int fd[2];
    if (pipe(fd))
        return km_fail(err, KM_EIO, "cannot make a pipe: %s", strerror(errno));
    pid_t parent = getpid();
    fflush(NULL);
    *pid = fork();
    if (*pid < 0) {
        close(fd[0]);
        close(fd[1]);
        return km_fail(err, KM_EIO, "cannot start the engine's process: %s", strerror(errno));
    }
    if (*pid == 0) {
        close(fd[0]);
        run_child(o, fd[1], parent);
    }
    close(fd[1]);
    struct child_report r = {0};
    ssize_t n;
    while ((n = read(fd[0], &r, sizeof r)) < 0 && errno == EINTR)
        ;
    close(fd[0]);
    if (n == (ssize_t)sizeof r && !r.err.code) {
        *ready = r.ready;
        return 0;
    }
    int status = 0;
    waitpid(*pid, &status, 0);
    if (n == (ssize_t)sizeof r)
        return km_fail(err, r.err.code, "%s", r.err.msg);
    char end[32];
    describe_end(status, end);
    return km_fail(err, KM_EIO, "the engine's process ended before it was ready (%s); its messages are above", end);
}

int serve_stop(pid_t pid, struct km_err *err)
{
    int status = 0;
    char end[32];
    bool was_dead = waitpid(pid, &status, WNOHANG) == pid;
    if (!was_dead) {
        kill(pid, SIGTERM);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && !was_dead)
        return 0;
    describe_end(status, end);
    return km_fail(err, KM_EIO, "the engine's process %s (%s)",
                   was_dead ? "ended during the run" : "did not end cleanly", end);
}

/* From flags to a serving engine, in this process or in a child.
 *
 * The child is a plain fork: it is made before any thread exists and runs the same host_serve; a pipe carries one
 * struct back, the port or the error. */
#include "harness/cli/host.h"

#include "base/log.h"
#include "base/mem.h"
#include "engine/server/server.h"
#include "kvcache/kvcache.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct host_opts host_defaults(void)
{
    struct eng_opts e = eng_defaults();
    struct srv_opts s = srv_defaults();
    return (struct host_opts){.load_format = "auto",
                              .dtype = "auto",
                              .device = "auto",
                              .host = s.host,
                              .port = s.port,
                              .kv_cache = "none",
                              .kv_role = "kv_both",
                              .max_num_seqs = e.max_num_seqs,
                              .max_num_batched_tokens = e.max_num_batched_tokens,
                              .block_size = e.block_size,
                              .gpu_memory_utilization = e.memory_utilization,
                              .enable_prefix_caching = true};
}

int host_flags(struct host_opts *o, struct km_flag *out, int max)
{
    const struct km_flag table[] = {
        {"model", 'm', KM_STR, &o->model, "DIR", "Hugging Face folder, or a preset such as qwen3-8b (dummy weights)", 0,
         0},
        {"tokenizer", 0, KM_STR, &o->tokenizer, "DIR", "folder or tokenizer.json (default: the model's)", 0, 0},
        {"load-format", 0, KM_STR, &o->load_format, "auto|dummy", "dummy: weights from --seed instead of the files", 0,
         0},
        {"dtype", 0, KM_STR, &o->dtype, "auto|float32|bfloat16", "weights and KV (default auto: the checkpoint's)", 0,
         0},
        {"device", 0, KM_STR, &o->device, "DEV", "auto, cpu, cuda or sim:NAME (default auto)", 0, 0},
        {"threads", 0, KM_INT, &o->threads, "N", "CPU threads (default: one a core)", 0, 1024},
        {"host", 0, KM_STR, &o->host, "ADDR", "address to bind (default 127.0.0.1)", 0, 0},
        {"port", 0, KM_INT, &o->port, "N", "port to bind, 0 for any free one (default 8000)", 0, 65535},
        {"served-model-name", 0, KM_STR, &o->served_model_name, "NAME", "name in the API (default: the model's)", 0, 0},
        {"api-key", 0, KM_STR, &o->api_key, "KEY", "bearer token that requests must bring", 0, 0},
        {"max-model-len", 0, KM_INT, &o->max_model_len, "N",
         "longest request in tokens (default: the model's, or what the pool holds)", 1, 1 << 24},
        {"max-num-seqs", 0, KM_INT, &o->max_num_seqs, "N", "requests running at once (default 256)", 1, 4096},
        {"max-num-batched-tokens", 0, KM_INT, &o->max_num_batched_tokens, "N", "tokens of one step (default 2048)", 1,
         1 << 20},
        {"block-size", 0, KM_INT, &o->block_size, "N", "tokens of a KV block (default 16)", 1, 1024},
        {"num-gpu-blocks-override", 0, KM_INT, &o->num_gpu_blocks_override, "N",
         "KV blocks in the pool, on any device (default: from memory)", 1, 1 << 28},
        {"gpu-memory-utilization", 0, KM_NUM, &o->gpu_memory_utilization, "X",
         "share of the device's memory to use (default 0.9)", 0.01, 1},
        {"gpu-memory-limit", 0, KM_SIZE, &o->gpu_memory_limit, "SIZE",
         "weights, work space and KV together, e.g. 24GiB", 0, 0},
        {"enable-prefix-caching", 0, KM_BOOL, &o->enable_prefix_caching, NULL,
         "reuse KV blocks still in the pool (default on)", 0, 0},
        {"kv-cache", 0, KM_STR, &o->kv_cache, "SPEC", "cache layer: none or dram=50GiB (default none)", 0, 0},
        {"kv-config", 0, KM_STR, &o->kv_config, "FILE.yaml", "cache layer from LMCache's configuration file", 0, 0},
        {"chunk-size", 0, KM_INT, &o->chunk_size, "N", "tokens of a chunk of the cache layer (default 256)", 1,
         1 << 20},
        {"kv-role", 0, KM_STR, &o->kv_role, "kv_both|kv_producer|kv_consumer", "only kv_both in this version", 0, 0},
        {"batch-invariant", 0, KM_BOOL, &o->batch_invariant, NULL, "bit-exact mode: not in this version", 0, 0},
        {"seed", 0, KM_INT, &o->seed, "N", "dummy weights, sampling and generated workloads (default 0)", 0, 9e15},
    };
    int n = (int)(sizeof table / sizeof *table);
    for (int i = 0; i < n && i < max; i++)
        out[i] = table[i];
    return n < max ? n : max;
}

/* The cache layer asked for; *off when there is none. */
static int cache_config(const struct host_opts *o, struct kvc_config *c, bool *off, bool say, struct km_err *err)
{
    *c = kvc_defaults();
    *off = true;
    bool by_spec = strcmp(o->kv_cache, "none") != 0;
    if (o->kv_config && by_spec)
        return km_fail(err, KM_EINVAL, "--kv-config and --kv-cache both describe the cache layer; give one");
    int rc = 0;
    if (o->kv_config) {
        struct km_buf warnings = {0};
        rc = kvc_config_yaml(o->kv_config, c, &warnings, err);
        for (char *w = warnings.data, *next; !rc && say && w && *w; w = next) {
            next = w + strcspn(w, "\n");
            if (*next)
                *next++ = 0;
            km_log(KM_LOG_WARN, "%s: %s", o->kv_config, w);
        }
        km_buf_free(&warnings);
        *off = !c->local_cpu;
    } else {
        rc = kvc_config_spec(o->kv_cache, c, off, err);
        if (rc)
            km_context(err, "--kv-cache");
    }
    if (!rc && o->chunk_size)
        c->chunk_size = (int)o->chunk_size;
    if (!rc && !*off && c->chunk_size % o->block_size)
        rc = km_fail(err, KM_EINVAL, "--chunk-size is %d; it must be a multiple of --block-size, which is %d",
                     c->chunk_size, (int)o->block_size);
    return rc;
}

static int check_flags(const struct host_opts *o, struct km_err *err)
{
    if (!o->model)
        return km_fail(err, KM_EINVAL, "--model is missing; give a Hugging Face folder or a preset such as qwen3-tiny");
    if (strcmp(o->kv_role, "kv_both"))
        return km_fail(err, KM_EINVAL, "--kv-role %s is not available in this version; only kv_both is", o->kv_role);
    if (o->batch_invariant)
        return km_fail(err, KM_EINVAL, "--batch-invariant is not available in this version");
    return 0;
}

static void state_facts(const struct host_opts *o, const struct backend *be, const struct kvc_config *c, bool off,
                        struct host_facts *facts)
{
    facts->dummy_weights = !strcmp(o->load_format, "dummy");
    for (const char *const *p = mdl_presets(); *p; p++)
        facts->dummy_weights |= !strcmp(*p, o->model);
    snprintf(facts->device, sizeof facts->device, "%s", be->name);
    snprintf(facts->kv, sizeof facts->kv, "none");
    if (!off) {
        struct km_buf text = {0};
        kvc_describe(c, &text);
        snprintf(facts->kv, sizeof facts->kv, "%s", km_buf_str(&text));
        km_buf_free(&text);
    }
}

int host_check(const struct host_opts *o, struct host_facts *facts, struct km_err *err)
{
    const struct backend *be;
    struct kvc_config c;
    bool off;
    int rc = check_flags(o, err);
    if (!rc)
        rc = backend_pick(o->device, &be, err);
    if (!rc)
        rc = cache_config(o, &c, &off, false, err);
    if (!rc)
        state_facts(o, be, &c, off, facts);
    return rc;
}

static struct eng_opts engine_options(const struct host_opts *o, const struct mdl_config *c)
{
    struct eng_opts e = eng_defaults();
    e.max_model_len = (int)o->max_model_len;
    e.max_num_seqs = (int)o->max_num_seqs;
    e.max_num_batched_tokens = (int)o->max_num_batched_tokens;
    e.block_size = (int)o->block_size;
    e.num_blocks = (int)o->num_gpu_blocks_override;
    e.memory_limit = o->gpu_memory_limit;
    e.memory_utilization = o->gpu_memory_utilization;
    e.prefix_caching = o->enable_prefix_caching;
    e.n_threads = (int)o->threads;
    e.dtype = !strcmp(o->dtype, "float32")    ? KM_F32
              : !strcmp(o->dtype, "bfloat16") ? KM_BF16
              : c->dtype == KM_F32            ? KM_F32
                                              : KM_BF16;
    return e;
}

/* The cache layer's part of the plan. */
static int plan_cache(struct host_plan *out, const struct kvc_config *c, bool off, struct km_err *err)
{
    out->token_bytes = (int64_t)out->mem.geom.page_bytes / out->engine.block_size;
    out->chunk_size = off ? kvc_defaults().chunk_size : c->chunk_size;
    int64_t chunk = out->token_bytes * out->chunk_size;
    out->cache_chunks = off ? 0 : c->max_local_cpu / chunk;
    if (!off && !out->cache_chunks)
        return km_fail(err, KM_EINVAL,
                       "the cache layer may take %.6g MiB, but one chunk of %d tokens of this model is %.6g MiB; allow "
                       "it more or lower --chunk-size",
                       (double)c->max_local_cpu / (1 << 20), out->chunk_size, (double)chunk / (1 << 20));
    return 0;
}

int host_plan(const struct host_opts *o, struct host_plan *out, struct km_err *err)
{
    const struct backend *be;
    struct kvc_config c;
    struct mdl *m = NULL;
    struct km_err why;
    bool off;
    memset(out, 0, sizeof *out);
    int rc = check_flags(o, err);
    if (!rc)
        rc = backend_pick_plan(o->device, &be, err);
    if (!rc && backend_fell_back(o->device, be, &why))
        km_log(KM_LOG_WARN, "planning for the CPU: %s", why.msg);
    if (!rc)
        rc = cache_config(o, &c, &off, true, err);
    if (!rc)
        rc = mdl_open(&m, o->model, !strcmp(o->load_format, "dummy"), (uint64_t)o->seed, err);
    if (!rc) {
        state_facts(o, be, &c, off, &out->facts);
        snprintf(out->model, sizeof out->model, "%s", mdl_name(m));
        out->engine = engine_options(o, mdl_config(m));
        rc = eng_plan(&out->mem, &out->engine, m, be, err);
    }
    if (!rc)
        rc = plan_cache(out, &c, off, err);
    out->fits = !rc;
    mdl_free(m);
    return rc;
}

/* Everything a serving process holds; freed in reverse order by host_close. */
struct parts {
    struct mdl *mdl;
    struct tok *tok;
    struct kvc *kvc;
    struct kv_port port;
    struct eng *eng;
    struct srv *srv;
};

static void parts_close(struct parts *p)
{
    srv_free(p->srv);
    eng_close(p->eng);
    kvc_free(p->kvc);
    tok_free(p->tok);
    mdl_free(p->mdl);
}

static int open_tokenizer(const struct host_opts *o, struct parts *p, struct km_err *err)
{
    const char *path = o->tokenizer ? o->tokenizer : mdl_dir(p->mdl);
    int rc = path ? tok_open(&p->tok, path, err) : KM_ENOENT;
    if (rc == KM_ENOENT && !o->tokenizer) {
        km_log(KM_LOG_WARN, "no tokenizer.json with model %s: only token ids are served (--tokenizer DIR gives one)",
               o->model);
        return 0;
    }
    int32_t ids = rc ? 0 : tok_total(p->tok), vocab = mdl_config(p->mdl)->vocab;
    if (ids > vocab)
        return km_fail(err, KM_EINVAL,
                       "tokenizer %s has %d ids but model %s has a vocabulary of %d; they do not belong together", path,
                       ids, o->model, vocab);
    return rc;
}

static int parts_open(const struct host_opts *o, struct parts *p, struct km_err *err)
{
    const struct backend *be;
    struct kvc_config c;
    bool off;
    int rc = backend_pick(o->device, &be, err);
    struct km_err why;
    if (!rc && backend_fell_back(o->device, be, &why))
        km_log(KM_LOG_WARN, "running on the CPU: %s", why.msg);
    if (!rc)
        rc = cache_config(o, &c, &off, true, err);
    if (!rc)
        rc = mdl_open(&p->mdl, o->model, !strcmp(o->load_format, "dummy"), (uint64_t)o->seed, err);
    if (!rc)
        rc = open_tokenizer(o, p, err);
    if (!rc && !off && !(rc = kvc_open(&p->kvc, &c, err)))
        kvc_port(p->kvc, &p->port);
    if (rc)
        return rc;

    struct eng_opts e = engine_options(o, mdl_config(p->mdl));
    rc = eng_open(&p->eng, &e, p->mdl, be, off ? NULL : &p->port, err);
    if (rc)
        return rc;

    struct km_buf kv = {0};
    if (off)
        km_buf_puts(&kv, "none");
    else
        kvc_describe(&c, &kv);
    struct srv_opts s = srv_defaults();
    s.host = o->host;
    s.port = (int)o->port;
    s.served_name = o->served_model_name;
    s.api_key = o->api_key;
    s.seed = o->seed;
    s.device = be->name;
    s.kv = km_buf_str(&kv);
    rc = srv_open(&p->srv, &s, p->eng, p->tok, err);
    if (!rc) {
        struct eng_stats st;
        const struct eng_opts *r = eng_options(p->eng);
        eng_stats(p->eng, &st);
        const double gib = 1 << 30;
        km_log(KM_LOG_INFO,
               "%s%s, %s, on %s: weights %.2f GiB, work space %.2f, KV %.2f in %d blocks of %d tokens (%d tokens of "
               "KV), context %d, kv cache %s",
               mdl_name(p->mdl), mdl_is_dummy(p->mdl) ? " (dummy weights)" : "", km_dtype_name(r->dtype), st.be.device,
               (double)st.be.weight_bytes / gib, (double)st.be.workspace_bytes / gib, (double)st.be.kv_bytes / gib,
               r->num_blocks, r->block_size, r->num_blocks * r->block_size, r->max_model_len, km_buf_str(&kv));
    }
    km_buf_free(&kv);
    return rc;
}

int host_serve(const struct host_opts *o, void (*ready)(void *arg, int port), void *arg, struct km_err *err)
{
    struct parts p = {0};
    int rc = parts_open(o, &p, err);
    if (!rc) {
        if (ready)
            ready(arg, srv_port(p.srv));
        rc = srv_run(p.srv, true, err);
    }
    parts_close(&p);
    return rc;
}

/* What the child says over the pipe, once. */
struct hello {
    int port;
    struct km_err err;
};

static void say_hello(void *arg, int port)
{
    struct hello h = {.port = port};
    int *fd = arg;
    if (write(*fd, &h, sizeof h) != (ssize_t)sizeof h)
        km_log(KM_LOG_ERROR, "cannot tell the parent which port was bound: %s", strerror(errno));
    close(*fd);
    *fd = -1;
}

static _Noreturn void child_main(const struct host_opts *o, int fd, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(1);
    signal(SIGINT, SIG_IGN); /* Ctrl-C is the client's to handle; it then ends this process */
    struct host_opts mine = *o;
    mine.port = 0;
    struct hello h = {0};
    int rc = host_serve(&mine, say_hello, &fd, &h.err);
    if (rc && fd >= 0 && write(fd, &h, sizeof h) != (ssize_t)sizeof h)
        rc = KM_EIO;
    else if (rc && fd < 0)
        km_log(KM_LOG_ERROR, "engine: %s", h.err.msg);
    exit(rc ? 1 : 0);
}

int host_spawn(const struct host_opts *o, pid_t *pid, int *port, struct km_err *err)
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
        child_main(o, fd[1], parent);
    }
    close(fd[1]);
    struct hello h = {0};
    ssize_t n;
    while ((n = read(fd[0], &h, sizeof h)) < 0 && errno == EINTR)
        ;
    close(fd[0]);
    if (n == (ssize_t)sizeof h && !h.err.code) {
        *port = h.port;
        return 0;
    }
    int status = 0;
    waitpid(*pid, &status, 0);
    if (n == (ssize_t)sizeof h)
        return km_fail(err, h.err.code, "%s", h.err.msg);
    return km_fail(err, KM_EIO, "the engine's process ended before it was ready (%s %d)",
                   WIFSIGNALED(status) ? "signal" : "status",
                   WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

int host_stop(pid_t pid, struct km_err *err)
{
    int status = 0;
    bool was_dead = waitpid(pid, &status, WNOHANG) == pid;
    if (!was_dead) {
        kill(pid, SIGTERM);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && !was_dead)
        return 0;
    return km_fail(err, KM_EIO, "the engine's process %s (%s %d)",
                   was_dead ? "died during the run" : "did not end cleanly", WIFSIGNALED(status) ? "signal" : "status",
                   WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

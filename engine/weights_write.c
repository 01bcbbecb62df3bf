/* Writing a model as a Hugging Face folder.
 *
 * First every tensor is assigned a shard and an offset, in order; a new shard begins whenever the current one would
 * grow too long. Then threads take blocks of rows from one shared counter and write each block at its offset, in any
 * order. The files are written to a temporary folder beside the new one, which is renamed at the end. */
#include "engine/weights_write.h"

#include "base/buf.h"
#include "base/file.h"
#include "base/json.h"
#include "base/machine.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 8 << 20, MAX_SHARDS = 1000, MAX_THREADS = 64 };

/* A tensor to write. */
struct piece {
    enum mdl_tensor t;
    int layer, rows, cols, shard;
    int64_t at; /* offset in the shard's data in bytes */
    int next;   /* first row that no thread has started on */
};

struct writer {
    const struct mdl *m;
    const char *dir; /* the temporary folder */
    struct piece *v; /* [n] */
    int n, current;  /* current: the first tensor with rows that no thread has started on */
    int n_shards, fd[MAX_SHARDS]; /* fd -1: the shard is not open */
    int64_t data_at[MAX_SHARDS], data_bytes[MAX_SHARDS]; /* a shard's data: offset in the file, and size */
    pthread_mutex_t lock;
    struct km_err err; /* the first error of any thread */
};

static int64_t bytes_of(const struct piece *p)
{
    return (int64_t)p->rows * p->cols * 2;
}

/* Assigns a shard and an offset to every tensor. */
static int assign_shards(struct writer *w, int64_t shard_bytes, struct km_err *err)
{
    const struct mdl_config *c = mdl_config(w->m);
    w->v = km_calloc((size_t)c->n_layers * MDL_TENSORS, sizeof *w->v);
    if (!w->v)
        return km_fail(err, KM_ENOMEM, "no memory for the tensor table of %d layers", c->n_layers);
    w->n_shards = 1;
    for (int layer = 0; layer < c->n_layers; layer++)
        for (int t = 0; t < MDL_TENSORS; t++) {
            if ((layer && !mdl_per_layer((enum mdl_tensor)t)) || (t == MDL_LM_HEAD && c->tied))
                continue;
            struct piece *p = &w->v[w->n++];
            p->t = (enum mdl_tensor)t;
            p->layer = layer;
            mdl_shape(c, p->t, &p->rows, &p->cols);
            int s = w->n_shards - 1;
            if (w->data_bytes[s] && w->data_bytes[s] + bytes_of(p) > shard_bytes) {
                if (++w->n_shards > MAX_SHARDS)
                    return km_fail(err, KM_ELIMIT,
                                   "shards of %lld bytes would be more than %d files: allow larger shards",
                                   (long long)shard_bytes, MAX_SHARDS);
                s++;
            }
            p->shard = s;
            p->at = w->data_bytes[s];
            w->data_bytes[s] += bytes_of(p);
        }
    return 0;
}

static void shard_name(const struct writer *w, int s, char *buf, size_t size)
{
    if (w->n_shards == 1)
        snprintf(buf, size, "model.safetensors");
    else
        snprintf(buf, size, "model-%05d-of-%05d.safetensors", s + 1, w->n_shards);
}

/* Creates the shard's file and writes its header: a length, then JSON padded with spaces to a multiple of 8 bytes. */
static int begin_shard(struct writer *w, int s, struct km_err *err)
{
    char file[64], name[128];
    struct km_buf head = {0};
    shard_name(w, s, file, sizeof file);
    km_buf_puts(&head, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < w->n; i++) {
        const struct piece *p = &w->v[i];
        if (p->shard != s)
            continue;
        mdl_tensor_name(name, sizeof name, p->t, p->layer);
        km_buf_printf(&head, ",\"%s\":{\"dtype\":\"BF16\",\"shape\":[%d", name, p->rows);
        if (p->cols > 1)
            km_buf_printf(&head, ",%d", p->cols);
        km_buf_printf(&head, "],\"data_offsets\":[%lld,%lld]}", (long long)p->at, (long long)(p->at + bytes_of(p)));
    }
    km_buf_putc(&head, '}');
    while (head.len % 8 && km_buf_ok(&head))
        km_buf_putc(&head, ' ');
    char *path = km_path(w->dir, file);
    int rc = 0;
    uint64_t len = head.len;
    if (!path || !km_buf_ok(&head))
        rc = km_fail(err, KM_ENOMEM, "no memory for the header of %s", file);
    else if ((w->fd[s] = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644)) < 0 ||
             pwrite(w->fd[s], &len, 8, 0) != 8 || pwrite(w->fd[s], head.data, head.len, 8) != (ssize_t)head.len)
        rc = km_fail(err, KM_EIO, "cannot write %s: %s", path, strerror(errno));
    w->data_at[s] = 8 + (int64_t)head.len;
    km_free(path);
    km_buf_free(&head);
    return rc;
}

/* The next block of rows to write. False: no rows are left, or a thread has failed. */
static bool next_block(struct writer *w, struct piece **out, int *row0, int *n)
{
    pthread_mutex_lock(&w->lock);
    while (w->current < w->n && w->v[w->current].next == w->v[w->current].rows)
        w->current++;
    bool some = w->current < w->n && !w->err.code;
    if (some) {
        struct piece *p = *out = &w->v[w->current];
        int most = BLOCK / (2 * p->cols);
        *row0 = p->next;
        *n = p->rows - p->next < most ? p->rows - p->next : most;
        p->next += *n;
    }
    pthread_mutex_unlock(&w->lock);
    return some;
}

static void write_block(struct writer *w, const struct piece *p, int row0, int n, char *buf)
{
    struct km_err err = {0};
    int64_t size = (int64_t)n * p->cols * 2, at = w->data_at[p->shard] + p->at + (int64_t)row0 * p->cols * 2,
            done = 0;
    mdl_read(w->m, p->t, p->layer, row0, n, KM_BF16, buf, &err);
    while (!err.code && done < size) {
        ssize_t k = pwrite(w->fd[p->shard], buf + done, (size_t)(size - done), at + done);
        if (k < 0 && errno != EINTR)
            km_fail(&err, KM_EIO, "cannot write weights to %s: %s", w->dir, strerror(errno));
        done += k > 0 ? k : 0;
    }
    if (!err.code)
        return;
    pthread_mutex_lock(&w->lock);
    if (!w->err.code)
        w->err = err;
    pthread_mutex_unlock(&w->lock);
}

static void *thread_main(void *arg)
{
    struct writer *w = arg;
    struct piece *p;
    int row0, n;
    char *buf = km_malloc(BLOCK);
    if (!buf) {
        pthread_mutex_lock(&w->lock);
        km_fail(&w->err, KM_ENOMEM, "no memory for a buffer of %d bytes", BLOCK);
        pthread_mutex_unlock(&w->lock);
    }
    while (buf && next_block(w, &p, &row0, &n))
        write_block(w, p, row0, n, buf);
    km_free(buf);
    return NULL;
}

static int write_data(struct writer *w, int n_threads, struct km_err *err)
{
    pthread_t t[MAX_THREADS];
    int n = 0, rc = 0;
    while (n < n_threads - 1 && !pthread_create(&t[n], NULL, thread_main, w))
        n++;
    thread_main(w); /* this thread writes too, and writes everything if no other thread could be started */
    while (n > 0)
        pthread_join(t[--n], NULL);
    if (w->err.code)
        return km_fail(err, w->err.code, "%s", w->err.msg);
    for (int s = 0; s < w->n_shards && !rc; s++)
        if (fsync(w->fd[s]))
            rc = km_fail(err, KM_EIO, "cannot write weights to %s: %s", w->dir, strerror(errno));
    return rc;
}

static int put_json(const struct writer *w, const char *file, cJSON *v, struct km_err *err)
{
    char *path = km_path(w->dir, file);
    int rc = path && v ? km_json_write(path, v, err) : km_fail(err, KM_ENOMEM, "no memory to write %s", file);
    km_free(path);
    cJSON_Delete(v);
    return rc;
}

static void add_eos_ids(cJSON *o, const struct mdl_config *c)
{
    cJSON *ids = cJSON_AddArrayToObject(o, "eos_token_id");
    for (int i = 0; i < c->n_eos; i++)
        cJSON_AddItemToArray(ids, cJSON_CreateNumber(c->eos[i]));
}

static cJSON *config_json(const struct mdl_config *c)
{
    const struct {
        const char *key;
        double v;
    } numbers[] = {{"vocab_size", c->vocab},
                   {"hidden_size", c->hidden},
                   {"intermediate_size", c->ffn},
                   {"num_hidden_layers", c->n_layers},
                   {"num_attention_heads", c->n_heads},
                   {"num_key_value_heads", c->n_kv_heads},
                   {"head_dim", c->head_dim},
                   {"max_position_embeddings", c->max_pos}};
    cJSON *o = cJSON_CreateObject(), *arch = cJSON_AddArrayToObject(o, "architectures");
    cJSON_AddItemToArray(arch, cJSON_CreateString("Qwen3ForCausalLM"));
    cJSON_AddStringToObject(o, "model_type", "qwen3");
    cJSON_AddStringToObject(o, "hidden_act", "silu");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        cJSON_AddNumberToObject(o, numbers[i].key, numbers[i].v);
    char eps[32]; /* the shortest decimal form, so that 1e-6 is not written as 9.99999997e-07 */
    snprintf(eps, sizeof eps, "%.6g", (double)c->rms_eps);
    cJSON_AddRawToObject(o, "rms_norm_eps", eps);
    cJSON_AddNumberToObject(o, "rope_theta", c->rope_theta);
    cJSON *rope = cJSON_AddObjectToObject(o, "rope_parameters"); /* read by transformers 5 */
    cJSON_AddStringToObject(rope, "rope_type", "default");
    cJSON_AddNumberToObject(rope, "rope_theta", c->rope_theta);
    cJSON_AddBoolToObject(o, "tie_word_embeddings", c->tied);
    cJSON_AddBoolToObject(o, "attention_bias", false);
    cJSON_AddBoolToObject(o, "use_sliding_window", false);
    cJSON_AddStringToObject(o, "torch_dtype", "bfloat16");
    add_eos_ids(o, c);
    return o;
}

static cJSON *generation_json(const struct mdl_config *c)
{
    cJSON *o = cJSON_CreateObject();
    add_eos_ids(o, c);
    if (c->temperature >= 0)
        cJSON_AddNumberToObject(o, "temperature", c->temperature);
    if (c->top_p >= 0)
        cJSON_AddNumberToObject(o, "top_p", c->top_p);
    if (c->top_k >= 0)
        cJSON_AddNumberToObject(o, "top_k", c->top_k);
    return o;
}

static cJSON *index_json(const struct writer *w)
{
    char file[64], name[128];
    cJSON *o = cJSON_CreateObject(), *meta = cJSON_AddObjectToObject(o, "metadata"),
          *map = cJSON_AddObjectToObject(o, "weight_map");
    int64_t all = 0;
    for (int s = 0; s < w->n_shards; s++)
        all += w->data_bytes[s];
    cJSON_AddNumberToObject(meta, "total_size", (double)all);
    for (int i = 0; i < w->n; i++) {
        shard_name(w, w->v[i].shard, file, sizeof file);
        mdl_tensor_name(name, sizeof name, w->v[i].t, w->v[i].layer);
        cJSON_AddStringToObject(map, name, file);
    }
    return o;
}

static int write_all(struct writer *w, int n_threads, struct km_err *err)
{
    const struct mdl_config *c = mdl_config(w->m);
    int rc = put_json(w, "config.json", config_json(c), err);
    if (!rc)
        rc = put_json(w, "generation_config.json", generation_json(c), err);
    if (!rc && w->n_shards > 1)
        rc = put_json(w, "model.safetensors.index.json", index_json(w), err);
    for (int s = 0; s < w->n_shards && !rc; s++)
        rc = begin_shard(w, s, err);
    return rc ? rc : write_data(w, n_threads, err);
}

/* Removes the temporary folder with the files that were written. */
static void remove_folder(const struct writer *w)
{
    static const char *const others[] = {"config.json", "generation_config.json", "model.safetensors.index.json"};
    for (int i = 0; i < w->n_shards + 3; i++) {
        char file[64];
        if (i < 3)
            snprintf(file, sizeof file, "%s", others[i]);
        else
            shard_name(w, i - 3, file, sizeof file);
        char *path = km_path(w->dir, file);
        if (path)
            unlink(path);
        km_free(path);
    }
    rmdir(w->dir);
}

int wts_write(const struct mdl *m, const char *dir, int64_t shard_bytes, int n_threads, struct km_err *err)
{
    struct writer *w = km_calloc(1, sizeof *w);
    struct km_buf tmp = {0};
    size_t len = strlen(dir);
    while (len > 1 && dir[len - 1] == '/')
        len--;
    km_buf_printf(&tmp, "%.*s.partial-%ld", (int)len, dir, (long)getpid());
    int rc = w && km_buf_ok(&tmp) ? 0 : km_fail(err, KM_ENOMEM, "no memory to write a model to %s", dir);
    if (!rc && access(dir, F_OK) == 0)
        rc = km_fail(err, KM_EINVAL, "%s exists already: name a new folder", dir);
    if (!rc)
        rc = km_mkdirs(tmp.data, err);
    if (rc) {
        km_free(w);
        km_buf_free(&tmp);
        return rc;
    }
    w->m = m;
    w->dir = tmp.data;
    pthread_mutex_init(&w->lock, NULL);
    memset(w->fd, 0xff, sizeof w->fd);
    if (n_threads < 1)
        n_threads = km_usable_cores();
    rc = assign_shards(w, shard_bytes > 0 ? shard_bytes : (int64_t)4 << 30, err);
    if (!rc)
        rc = write_all(w, n_threads < MAX_THREADS ? n_threads : MAX_THREADS, err);
    for (int s = 0; s < w->n_shards; s++)
        if (w->fd[s] >= 0 && close(w->fd[s]) && !rc)
            rc = km_fail(err, KM_EIO, "cannot write weights to %s: %s", w->dir, strerror(errno));
    if (!rc && rename(w->dir, dir))
        rc = km_fail(err, KM_EIO, "cannot rename %s to %s: %s", w->dir, dir, strerror(errno));
    if (rc)
        remove_folder(w);
    pthread_mutex_destroy(&w->lock);
    km_free(w->v);
    km_free(w);
    km_buf_free(&tmp);
    return rc;
}

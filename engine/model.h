/* A Qwen3 checkpoint: its config, and its tensors wherever they come from.
 *
 * `struct mdl` is read-only once opened and owns the open files. Tensors are read through
 * mdl_read, which converts to the type a backend wants: whether they come from safetensors (bf16, f16
 * or f32, one file or shards) or from the seed of a preset with dummy weights is not the caller's
 * business. Shapes are checked against the config before anything is read.
 *
 * Letters used everywhere in engine/: L layers, D hidden, H query heads, G key/value heads, d head_dim,
 * F ffn, V vocab, T tokens of one step, B tokens of a block (page). */
#ifndef MDL_MODEL_H
#define MDL_MODEL_H

#include "base/dtype.h"
#include "base/err.h"
#include "base/hash.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mdl_config {
    int n_layers, hidden, n_heads, n_kv_heads, head_dim, ffn, vocab, max_pos;
    float rope_theta, rms_eps;
    bool tied;            /* lm_head is the embedding */
    enum km_dtype dtype; /* what the checkpoint stores; --dtype auto */
    int32_t eos[8];       /* [n_eos] ids that end a generation: generation_config.json, else config.json */
    int n_eos;
    /* generation_config.json's sampling defaults, as vLLM applies them; <0: not given */
    double temperature, top_p;
    int top_k;
};

enum mdl_tensor {
    MDL_EMBED,     /* [V][D]              */
    MDL_NORM_OUT,  /* [D]                 */
    MDL_LM_HEAD,   /* [V][D]; the embedding when tied */
    MDL_NORM_ATTN, /* [D]     per layer from here on  */
    MDL_Q,         /* [H*d][D]            */
    MDL_K,         /* [G*d][D]            */
    MDL_V,         /* [G*d][D]            */
    MDL_O,         /* [D][H*d]            */
    MDL_Q_NORM,    /* [d]                 */
    MDL_K_NORM,    /* [d]                 */
    MDL_NORM_FFN,  /* [D]                 */
    MDL_GATE,      /* [F][D]              */
    MDL_UP,        /* [F][D]              */
    MDL_DOWN,      /* [D][F]              */
    MDL_TENSORS
};

struct mdl;

/* name: a Hugging Face folder, or a preset (qwen3-0.6b -1.7b -4b -8b -14b -32b, qwen3-tiny). A preset
 * always has dummy weights made from `seed`; a folder has them when dummy is true (only config.json is
 * needed then). Missing, truncated, mis-shaped or contradictory files are errors naming file and tensor. */
int mdl_open(struct mdl **out, const char *name, bool dummy, uint64_t seed, struct km_err *err);
void mdl_free(struct mdl *m);

const struct mdl_config *mdl_config(const struct mdl *m);
const char *mdl_name(const struct mdl *m);     /* the preset, or the folder's last path part */
const char *mdl_dir(const struct mdl *m);      /* NULL for a preset */
bool mdl_is_dummy(const struct mdl *m);        /* results say so wherever their numbers appear */
uint64_t mdl_seed(const struct mdl *m);         /* of dummy weights */
int64_t mdl_params(const struct mdl *m);

bool mdl_per_layer(enum mdl_tensor t);
/* "model.layers.3.mlp.up_proj.weight": what checkpoints call it. */
void mdl_tensor_name(char *buf, size_t size, enum mdl_tensor t, int layer);
/* rows x cols of a tensor; cols is 1 for vectors. */
void mdl_shape(const struct mdl_config *c, enum mdl_tensor t, int *rows, int *cols);
/* Reads rows [row0, row0 + n) of tensor t (layer 0 for the first three) into dst, row-major, as f32 or
 * as bf16 (round to nearest even). Dummy values depend on (seed, tensor, layer, index) alone, so that any
 * device makes the same ones. Thread-safe. */
int mdl_read(const struct mdl *m, enum mdl_tensor t, int layer, int row0, int n, enum km_dtype as, void *dst,
             struct km_err *err);

/* The scale of a tensor's dummy weights (engine/dummy.h): a standard deviation of 0.02, and less for the two projections
 * that add to the residual stream, so that it stays bounded in deep models. 0 for norm weights. */
float mdl_dummy_scale(const struct mdl_config *c, enum mdl_tensor t);

/* The rotary embedding's inverse frequencies, [head_dim / 2]: theta^(-2i / head_dim) in f32, as transformers and vLLM
 * compute them. */
void mdl_inv_freq(const struct mdl_config *c, float *out);

/* SHA-256 over the config and the weights' identity (tensor table, and the bytes of small tensors or a
 * fixed sample of large ones): the root of every cache key, so that no two models share KV. */
struct km_digest mdl_fingerprint(const struct mdl *m);

/* Known presets, for help and errors; NULL-terminated. */
const char *const *mdl_presets(void);

#endif

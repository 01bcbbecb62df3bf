/* A Qwen3 model: its config and its tensors.
 *
 * `struct mdl` owns the open files. Its config and tensors do not change after mdl_open. mdl_read returns rows of a
 * tensor in the type that a backend needs, from safetensors files (bf16, f16 or f32, one file or shards) or made from
 * the seed of a model with dummy weights. Shapes are checked against the config before any weight is read.
 *
 * Letters used everywhere in engine/: L layers, D hidden size, H query heads, G key/value heads, d head_dim, F ffn
 * size, V vocabulary, T rows (tokens) of one step, B tokens of a block. */
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
    bool tied;           /* the LM head is the embedding */
    enum km_dtype dtype; /* of the checkpoint; used by --dtype auto */
    int32_t eos[8];      /* [n_eos] ids that end a generation: from generation_config.json, else config.json */
    int n_eos;
    /* Sampling defaults of generation_config.json, which the server applies as vLLM does; < 0: not in the file. */
    double temperature, top_p;
    int top_k;
};

enum mdl_tensor {
    MDL_EMBED,     /* [V][D]              */
    MDL_NORM_OUT,  /* [D]                 */
    MDL_LM_HEAD,   /* [V][D]; the embedding if tied */
    MDL_NORM_ATTN, /* [D]     one per layer, as all below */
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

/* name: a Hugging Face folder, or a preset (mdl_presets). A preset always has dummy weights, made from `seed`. With
 * dummy = true a folder has dummy weights too, and needs only config.json. Missing, truncated, contradictory or wrongly
 * shaped files are errors that name the file and the tensor. */
int mdl_open(struct mdl **out, const char *name, bool dummy, uint64_t seed, struct km_err *err);
void mdl_free(struct mdl *m);

const struct mdl_config *mdl_config(const struct mdl *m);
const char *mdl_name(const struct mdl *m); /* the preset, or the last part of the folder's path */
const char *mdl_dir(const struct mdl *m);  /* NULL for a preset */
bool mdl_is_dummy(const struct mdl *m);    /* dummy weights: every result of this model must say so */
uint64_t mdl_seed(const struct mdl *m);    /* of dummy weights */
int64_t mdl_params(const struct mdl *m);

bool mdl_per_layer(enum mdl_tensor t);
/* The tensor's name in a checkpoint, such as "model.layers.3.mlp.up_proj.weight". */
void mdl_tensor_name(char *buf, size_t size, enum mdl_tensor t, int layer);
/* The shape of a tensor, [rows][cols]; cols is 1 for vectors. */
void mdl_shape(const struct mdl_config *c, enum mdl_tensor t, int *rows, int *cols);
/* Reads rows [row0, row0 + n) of tensor t into dst, row-major, as f32 or as bf16 (rounded to nearest even). layer is 0
 * for tensors that are not per layer. Thread-safe. */
int mdl_read(const struct mdl *m, enum mdl_tensor t, int layer, int row0, int n, enum km_dtype as, void *dst,
             struct km_err *err);

/* The scale of a tensor's dummy weights (engine/dummy.h): a standard deviation of 0.02, and less for the two
 * projections that add to the residual stream, so that it stays bounded in deep models. 0 for norm weights. */
float mdl_dummy_scale(const struct mdl_config *c, enum mdl_tensor t);

/* The rotary embedding's inverse frequencies, [head_dim / 2]: theta^(-2i / head_dim) in f32, as transformers and vLLM
 * compute them. */
void mdl_inv_freq(const struct mdl_config *c, float *out);

/* SHA-256 over the config and the weights: all bytes of all tensors (engine/fingerprint.h), or the seed of dummy
 * weights. It enters the root of every key of a cache layer, so that no two models share KV. The first call reads the
 * weights with all cores; later calls return the result at once. A run without a cache layer needs no fingerprint, and
 * does not pay for one. Thread-safe. KM_EIO if a file cannot be read; KM_ENOMEM. */
int mdl_fingerprint(const struct mdl *m, struct km_digest *out, struct km_err *err);
bool mdl_fingerprint_known(const struct mdl *m); /* true if mdl_fingerprint would return at once */

/* The names of the presets, NULL-terminated. */
const char *const *mdl_presets(void);

#endif

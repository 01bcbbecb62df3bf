/* Writes a model as a Hugging Face folder, so that other engines can load exactly the weights that this one runs. */
#ifndef WTS_WRITE_H
#define WTS_WRITE_H

#include "engine/model.h"

/* Writes config.json, generation_config.json and bf16 safetensors into the new folder dir. Weights beyond shard_bytes
 * (0: 4 GiB) go into several shards with an index. dir appears only when every byte is on disk. n_threads 0: one per
 * core. KM_EINVAL: dir exists. */
int wts_write(const struct mdl *m, const char *dir, int64_t shard_bytes, int n_threads, struct km_err *err);

#endif

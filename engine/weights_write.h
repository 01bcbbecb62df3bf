/* A model as a Hugging Face folder, so that any other engine can load the very weights this one runs. */
#ifndef WTS_WRITE_H
#define WTS_WRITE_H

#include "engine/model.h"

/* Writes config.json, generation_config.json and bf16 safetensors (shards of at most shard_bytes with an index when
 * one file is not enough; 0: 4 GiB) into the new folder dir. All or nothing: dir appears when every byte is on
 * disk. n_threads 0: one a core. KM_EINVAL when dir exists. */
int wts_write(const struct mdl *m, const char *dir, int64_t shard_bytes, int n_threads, struct km_err *err);

#endif

/* Small Qwen3 model folders for tests, with any shape, stored type and number of shards. */
#ifndef FX_FIXTURE_H
#define FX_FIXTURE_H

#include "base/buf.h"
#include "engine/model.h"

/* Creates a new folder under /tmp and writes its name to path. fx_remove deletes the folder and the files in it. */
void fx_dir(char path[64]);
void fx_remove(const char *path);

void fx_write(const char *dir, const char *name, const void *data, size_t n);
void fx_read(const char *dir, const char *name, struct km_buf *out);

/* Writes config.json and the weights of *c, with eps 1e-6, stored as `dtype`. shards 1: one file model.safetensors;
 * more: an index and that many files. The values are dummy weights made from `seed`. */
void fx_model(const char *dir, const struct mdl_config *c, enum km_dtype dtype, int shards, uint64_t seed);

uint16_t fx_f32_to_f16(float f); /* exact for values that f16 can represent; others are truncated */

#endif

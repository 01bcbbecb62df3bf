/* Small Qwen3 folders for tests, written on the spot: any shape, any stored type, any number of shards. */
#ifndef FX_FIXTURE_H
#define FX_FIXTURE_H

#include "base/buf.h"
#include "engine/model.h"

/* A fresh folder under /tmp, into path; fx_remove deletes it with the plain files in it. */
void fx_dir(char path[64]);
void fx_remove(const char *path);

void fx_write(const char *dir, const char *name, const void *data, size_t n);
void fx_read(const char *dir, const char *name, struct km_buf *out);

/* config.json and the weights of *c (eps 1e-6, theta as given), stored as `dtype`. shards 1: model.safetensors;
 * more: an index and that many files. Element values are those of dummy weights made from `seed`. */
void fx_model(const char *dir, const struct mdl_config *c, enum km_dtype dtype, int shards, uint64_t seed);

uint16_t fx_f32_to_f16(float f); /* exact for values that f16 can hold; others are cut */

#endif

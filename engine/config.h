/* Where a model's shape comes from: config.json and generation_config.json of a folder, or a preset.
 *
 * A config that asks for something this engine does not compute (rope scaling, sliding windows, biases,
 * quantised weights, another architecture) is refused by name: a wrong answer would look like a right one. */
#ifndef MDL_CONFIG_H
#define MDL_CONFIG_H

#include "engine/model.h"

/* Fills *c from dir. eos ids come from generation_config.json when it is there and names some. */
int mdl_config_read(struct mdl_config *c, const char *dir, struct km_err *err);

/* The preset's shape; NULL when name is none. */
const struct mdl_config *mdl_preset(const char *name);

#endif

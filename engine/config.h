/* The model config: read from config.json and generation_config.json of a folder, or taken from a preset.
 *
 * A config that asks for something this engine does not compute is an error: rope scaling, sliding windows, biases,
 * quantised weights, another architecture. Otherwise the engine would give a wrong answer that looks right. */
#ifndef MDL_CONFIG_H
#define MDL_CONFIG_H

#include "engine/model.h"

/* Fills *c from the files in dir. EOS ids come from generation_config.json if it has any, else from config.json. */
int mdl_config_read(struct mdl_config *c, const char *dir, struct km_err *err);

/* The config of a preset; NULL if there is no preset of this name. */
const struct mdl_config *mdl_preset(const char *name);

#endif

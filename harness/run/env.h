/* The environment of a run, for env.json and `kvmark info`. */
#ifndef HZ_ENV_H
#define HZ_ENV_H

#include "base/json.h"

/* Describes the machine, CPU, memory, kernel, compiler and libraries in a new object (cJSON_Delete). Values that are
 * not known are left out. */
cJSON *hz_environment(void);

#endif

/* The environment of a run, for env.json and `kvmark info`. */
#ifndef HZ_ENV_H
#define HZ_ENV_H

#include "base/json.h"

/* Machine, CPU, memory, kernel, compiler and libraries as a new object (cJSON_Delete). What is not known is left out.
 */
cJSON *hz_environment(void);

#endif

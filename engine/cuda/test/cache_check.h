/* Checks the CUDA engine together with the KV-cache layer: the mode `cache` of engine_check. */
#ifndef CAC_CACHE_CHECK_H
#define CAC_CACHE_CHECK_H

#include "engine/model.h"

void cac_check(const struct mdl *m, double tolerance);

#endif

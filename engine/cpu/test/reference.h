/* A plain forward pass in double precision: what the backend's log-probabilities are compared with.
 *
 * It has one loop per formula and neither tiles nor vectors, so that it can be checked by reading. It is slow. */
#ifndef REFERENCE_H
#define REFERENCE_H

#include "engine/model.h"

#include <stdint.h>

/* Returns the log-probabilities [vocab] of the id that follows tokens[T]. The caller frees them with free(). */
double *reference(const struct mdl *m, const int32_t *tokens, int T);

#endif

/* The fingerprint of weights in files: a hash of every byte of every tensor, so that two checkpoints which differ
 * anywhere never share KV.
 *
 * The bytes of each tensor are divided into pieces of FPR_PIECE bytes. XXH3 (128 bits) hashes the pieces, in parallel
 * threads. SHA-256 hashes the pieces' hashes together with the table of tensors, in the order of the tensors' names.
 * Neither the folder's name nor the division into shards enters the fingerprint. */
#ifndef FPR_FINGERPRINT_H
#define FPR_FINGERPRINT_H

#include "base/err.h"
#include "base/hash.h"
#include "engine/safetensors.h"

enum { FPR_PIECE = 1 << 20 }; /* bytes: a piece and its buffer stay in a core's L2 cache */

/* Adds the names, types, shapes and bytes of all tensors to the hash h. Reads the files once, with at most n_threads
 * threads. KM_EIO names the file and the tensor; KM_ENOMEM. */
int fpr_add_weights(struct km_sha *h, const struct st *files, int n_threads, struct km_err *err);

#endif

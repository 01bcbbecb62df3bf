/* Every test of this tree includes this header first: cmocka with the headers that it needs, and optional data.
 *
 * Some tests need files that are too large to commit, or belong to others: the novel of the write-up's workload,
 * Qwen3's tokenizer, checkpoints of other shapes. They are in the folder that the environment variable KVM_DATA names.
 * A test whose file is missing prints a line that says so, and skips. */
#ifndef KM_TEST_H
#define KM_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* The path $KVM_DATA/name, in a static buffer that the ninth call after this one overwrites. If KVM_DATA is not set or
 * the file does not exist, prints a line and returns NULL; the caller then calls skip(). */
static inline const char *km_test_data(const char *name)
{
    static char paths[8][512];
    static int next;
    const char *dir = getenv("KVM_DATA");
    char *path = paths[next++ % 8];
    snprintf(path, sizeof *paths, "%s/%s", dir ? dir : "", name);
    if (dir && *dir && !access(path, R_OK))
        return path;
    printf("skipped: %s is not there; KVM_DATA names the folder that may hold it\n", dir && *dir ? path : name);
    return NULL;
}

#endif

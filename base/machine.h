/* What the operating system says about this machine, as far as this process may use it. */
#ifndef KM_MACHINE_H
#define KM_MACHINE_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of memory that this process can still take: the kernel's estimate for the machine (MemAvailable), or less if a
 * control group (a container's limit, cgroup v1 or v2) leaves less. INT64_MAX when neither is known.
 *
 * What a control group leaves is its limit less its usage, where page cache that can be reclaimed does not count as
 * used: all of inactive_file, and half of active_file. Active pages can be reclaimed too, but running programs and
 * mapped checkpoints live there; half is also the least that MemAvailable counts as free. The limits of all groups
 * above the process's own apply as well.
 *
 * root is put before /proc and /sys: "" for the machine itself, a folder with copies of these files in tests. */
int64_t km_available_memory(const char *root);

int km_usable_cores(void); /* cores that this process may run on (its affinity mask); at least 1 */

/* The CPU's model name, or "CPU" when the kernel does not tell. Always terminated. */
void km_cpu_name(char *buf, size_t size);

#endif

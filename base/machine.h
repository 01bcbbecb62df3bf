/* The part of the machine that this process may use: memory, cores, and the name of the CPU. */
#ifndef KM_MACHINE_H
#define KM_MACHINE_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of memory that this process can still allocate: the kernel's estimate for the machine (MemAvailable), or the
 * memory available in the process's control groups (a container's limit, cgroup v1 or v2), whichever is less. INT64_MAX
 * if neither is known.
 *
 * A control group has its limit less its usage available. Page cache that can be reclaimed does not count as used: all
 * of inactive_file, and half of active_file. Active pages can be reclaimed, too, but they include running programs and
 * mapped checkpoints; half is also the least that MemAvailable counts as free. The limits of all groups above the
 * process's own apply as well.
 *
 * root is put before /proc and /sys: "" for the machine itself, a folder with copies of these files in tests. */
int64_t km_available_memory(const char *root);

int km_usable_cores(void); /* cores that this process may run on (its affinity mask); at least 1 */

/* The CPU's model name, or "CPU" if the kernel does not state it. Always terminated. */
void km_cpu_name(char *buf, size_t size);

#endif

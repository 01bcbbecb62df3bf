/* What the machine says of itself. */
#ifndef CPU_HOST_H
#define CPU_HOST_H

#include <stddef.h>
#include <stdint.h>

/* Memory that can be had now without swapping, a container's limit respected; INT64_MAX when unknown. */
int64_t host_available(void);
void host_cpu_name(char *buf, size_t size);

#endif

/* Reads what can make the results of two runs differ: the kernel's files in /proc and /sys, and the versions of the
 * libraries. */
#include "harness/run/env.h"

#include <curl/curl.h>
#include <gnu/libc-version.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <xxhash.h>

/* Reads the first line of a file. False: there is no such file, or the line is empty. */
static bool read_first_line(const char *path, char *out, size_t size)
{
    FILE *f = fopen(path, "r");
    bool ok = f && fgets(out, (int)size, f);
    if (f)
        fclose(f);
    if (!ok)
        return false;
    out[strcspn(out, "\n")] = 0;
    return out[0] != 0;
}

static void add_line(cJSON *to, const char *key, const char *path)
{
    char line[512];
    if (read_first_line(path, line, sizeof line))
        cJSON_AddStringToObject(to, key, line);
}

/* Reads the value of the first line "key : value" of a /proc file. False: there is no such line. */
static bool read_field(const char *path, const char *key, char *out, size_t size)
{
    char line[4096];
    size_t n = strlen(key);
    bool found = false;
    FILE *f = fopen(path, "r");
    while (f && !found && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, key, n) || !colon || strspn(line + n, " \t") != (size_t)(colon - line) - n)
            continue;
        colon += 1 + strspn(colon + 1, " \t");
        colon[strcspn(colon, "\n")] = 0;
        snprintf(out, size, "%s", colon);
        found = true;
    }
    if (f)
        fclose(f);
    return found;
}

static void add_cpu(cJSON *to)
{
    static const char *const wanted[] = {"avx2",        "fma",      "avx512f",   "avx512_bf16",
                                         "avx512_vnni", "amx_bf16", "hypervisor"};
    char text[4096], padded[4100], word[32];
    cJSON *cpu = cJSON_AddObjectToObject(to, "cpu");
    if (read_field("/proc/cpuinfo", "model name", text, sizeof text))
        cJSON_AddStringToObject(cpu, "model", text);
    cJSON_AddNumberToObject(cpu, "online", (double)sysconf(_SC_NPROCESSORS_ONLN));
    if (read_field("/proc/cpuinfo", "microcode", text, sizeof text))
        cJSON_AddStringToObject(cpu, "microcode", text);
    if (read_field("/proc/cpuinfo", "flags", text, sizeof text)) {
        cJSON *flags = cJSON_AddArrayToObject(cpu, "flags");
        snprintf(padded, sizeof padded, " %s ", text);
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
            snprintf(word, sizeof word, " %s ", wanted[i]);
            if (strstr(padded, word))
                cJSON_AddItemToArray(flags, cJSON_CreateString(wanted[i]));
        }
    }
    add_line(cpu, "governor", "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    add_line(cpu, "smt", "/sys/devices/system/cpu/smt/control");
    add_line(cpu, "cgroup_limit", "/sys/fs/cgroup/cpu.max");
    add_line(cpu, "load", "/proc/loadavg");
}

static void add_memory(cJSON *to)
{
    char text[128];
    cJSON *m = cJSON_AddObjectToObject(to, "memory");
    if (read_field("/proc/meminfo", "MemTotal", text, sizeof text))
        cJSON_AddNumberToObject(m, "total_bytes", strtod(text, NULL) * 1024);
    if (read_field("/proc/meminfo", "MemAvailable", text, sizeof text))
        cJSON_AddNumberToObject(m, "available_bytes", strtod(text, NULL) * 1024);
    add_line(m, "cgroup_limit", "/sys/fs/cgroup/memory.max");
    add_line(m, "huge_pages", "/sys/kernel/mm/transparent_hugepage/enabled");
    add_line(m, "numa_nodes", "/sys/devices/system/node/online");
}

static void add_system(cJSON *to)
{
    struct utsname u;
    char text[256];
    cJSON *s = cJSON_AddObjectToObject(to, "system");
    if (!uname(&u)) {
        cJSON_AddStringToObject(s, "kernel", u.release);
        cJSON_AddStringToObject(s, "arch", u.machine);
    }
    FILE *f = fopen("/etc/os-release", "r");
    while (f && fgets(text, sizeof text, f))
        if (!strncmp(text, "PRETTY_NAME=\"", 13)) {
            text[13 + strcspn(text + 13, "\"\n")] = 0;
            cJSON_AddStringToObject(s, "os", text + 13);
        }
    if (f)
        fclose(f);
    add_line(s, "clocksource", "/sys/devices/system/clocksource/clocksource0/current_clocksource");
    add_line(s, "product", "/sys/class/dmi/id/product_name");
    add_line(s, "nvidia_driver", "/proc/driver/nvidia/version");
}

static void add_build(cJSON *to)
{
    cJSON *b = cJSON_AddObjectToObject(to, "build");
    cJSON_AddStringToObject(b, "compiler", __VERSION__);
#ifdef __OPTIMIZE__
    cJSON_AddBoolToObject(b, "optimized", true);
#else
    cJSON_AddBoolToObject(b, "optimized", false);
#endif
#ifdef __SANITIZE_ADDRESS__
    cJSON_AddBoolToObject(b, "sanitizer", true);
#else
    cJSON_AddBoolToObject(b, "sanitizer", false);
#endif
    cJSON *l = cJSON_AddObjectToObject(to, "libraries");
    char version[32];
    unsigned x = XXH_versionNumber();
    cJSON_AddStringToObject(l, "libc", gnu_get_libc_version());
    cJSON_AddStringToObject(l, "libcurl", curl_version());
    cJSON_AddStringToObject(l, "cjson", cJSON_Version());
    snprintf(version, sizeof version, "%u.%u.%u", x / 10000, x / 100 % 100, x % 100);
    cJSON_AddStringToObject(l, "xxhash", version);
}

cJSON *hz_environment(void)
{
    cJSON *v = cJSON_CreateObject();
    cJSON_AddStringToObject(v, "schema", "kvmark.env.1");
    add_system(v);
    add_cpu(v);
    add_memory(v);
    add_build(v);
    return v;
}

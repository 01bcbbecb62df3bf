/* Available memory, read from a folder with copies of the kernel's files: the machine's estimate, limits of both
 * versions of control groups, page cache, groups above the process's own, and files that are missing. */
#include "base/test/test.h"

#include "base/buf.h"
#include "base/file.h"
#include "base/machine.h"

#include <string.h>

static char root[64];

static void write_file(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    char *slash = strrchr(full, '/');
    *slash = 0;
    assert_int_equal(km_mkdirs(full, NULL), 0);
    *slash = '/';
    assert_int_equal(km_file_write(full, text, strlen(text), NULL), 0);
}

static int fresh_root(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "/tmp/kvm_machine_XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    (void)state;
    struct km_buf b = {0};
    km_buf_puts(&b, "rm -rf ");
    km_buf_put_shell(&b, root);
    int rc = system(b.data);
    km_buf_free(&b);
    return rc;
}

static void machine_without_groups(void **state)
{
    (void)state;
    assert_true(km_available_memory(root) == INT64_MAX);
    write_file("/proc/meminfo", "MemTotal:  9000 kB\nMemFree:  1 kB\nMemAvailable:    4000 kB\n");
    assert_int_equal(km_available_memory(root), 4000 * 1024);
    write_file("/proc/self/cgroup", "not a line of the kernel\n\n:::\n");
    assert_int_equal(km_available_memory(root), 4000 * 1024);
    write_file("/proc/self/cgroup", "0::/\n"); /* no limit: the root group has no memory.max */
    assert_int_equal(km_available_memory(root), 4000 * 1024);
    write_file("/sys/fs/cgroup/memory.max", "max\n");
    write_file("/sys/fs/cgroup/memory.current", "1000\n");
    assert_int_equal(km_available_memory(root), 4000 * 1024);
}

static void container_of_version_2(void **state)
{
    (void)state;
    write_file("/proc/meminfo", "MemAvailable: 4000 kB\n");
    write_file("/proc/self/cgroup", "0::/\n");
    write_file("/sys/fs/cgroup/memory.max", "1000000\n");
    assert_int_equal(km_available_memory(root), 1000000); /* usage unknown */
    write_file("/sys/fs/cgroup/memory.current", "700000\n");
    assert_int_equal(km_available_memory(root), 300000);
    write_file("/sys/fs/cgroup/memory.stat", "anon 400000\nfile 300000\ninactive_anon 5\ninactive_file 200000\n"
                                             "active_file 100000\nworkingset_refault_file 9\n");
    assert_int_equal(km_available_memory(root), 300000 + 200000 + 50000);
    write_file("/sys/fs/cgroup/memory.current",
               "5000\n"); /* counters are read one after another: no more than the limit */
    assert_int_equal(km_available_memory(root), 1000000);
    write_file("/sys/fs/cgroup/memory.current", "9000000\n");
    assert_int_equal(km_available_memory(root), 0);
    write_file("/sys/fs/cgroup/memory.max", "100000000000\n"); /* more than the machine has */
    assert_int_equal(km_available_memory(root), 4000 * 1024);
}

static void groups_above_count(void **state)
{
    (void)state;
    write_file("/proc/meminfo", "MemAvailable: 4000 kB\n");
    write_file("/proc/self/cgroup", "0::/user.slice/app.scope\n");
    write_file("/sys/fs/cgroup/user.slice/app.scope/memory.max", "900000\n");
    write_file("/sys/fs/cgroup/user.slice/app.scope/memory.current", "100000\n");
    assert_int_equal(km_available_memory(root), 800000);
    write_file("/sys/fs/cgroup/user.slice/memory.max", "950000\n");
    write_file("/sys/fs/cgroup/user.slice/memory.current", "500000\n");
    assert_int_equal(km_available_memory(root), 450000);
    write_file("/proc/self/cgroup", "0::/../elsewhere\n"); /* outside this namespace: nothing is known */
    assert_int_equal(km_available_memory(root), 4000 * 1024);
}

static void container_of_version_1(void **state)
{
    (void)state;
    write_file("/proc/meminfo", "MemAvailable: 4000 kB\n");
    write_file("/proc/self/cgroup", "9:cpu,cpuacct:/a\n4:memory:/docker/abc\n0::/\n");
    write_file("/sys/fs/cgroup/cpu/memory.limit_in_bytes", "1\n");
    write_file("/sys/fs/cgroup/memory/memory.limit_in_bytes",
               "1000000\n"); /* the container's own group, seen as the root */
    write_file("/sys/fs/cgroup/memory/memory.usage_in_bytes", "600000\n");
    write_file("/sys/fs/cgroup/memory/memory.stat", "inactive_file 1\nactive_file 3\ntotal_inactive_file 100000\n"
                                                    "total_active_file 40000\n");
    assert_int_equal(km_available_memory(root), 400000 + 100000 + 20000);
    write_file("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "500000\n");
    write_file("/sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "450000\n");
    assert_int_equal(km_available_memory(root), 50000);
    write_file("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "9223372036854771712\n"); /* none */
    assert_int_equal(km_available_memory(root), 520000);
}

static void this_machine_has_something(void **state)
{
    (void)state;
    char name[64];
    assert_true(km_available_memory("") > 0);
    assert_true(km_usable_cores() >= 1);
    km_cpu_name(name, sizeof name);
    assert_true(strlen(name) > 0);
    char cut[4];
    km_cpu_name(cut, sizeof cut);
    assert_true(strlen(cut) <= 3);
}

int main(void)
{
#define WITH_ROOT(test) cmocka_unit_test_setup_teardown(test, fresh_root, remove_root)
    const struct CMUnitTest tests[] = {
        WITH_ROOT(machine_without_groups),
        WITH_ROOT(container_of_version_2),
        WITH_ROOT(groups_above_count),
        WITH_ROOT(container_of_version_1),
        cmocka_unit_test(this_machine_has_something),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

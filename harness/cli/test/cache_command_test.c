/* The subcommand cache: its output and exit status for a folder with good and damaged chunks. */
#include "base/test/test.h"

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/page_sum.h"
#include "harness/cli/cmd.h"
#include "kvcache/header.h"
#include "kvcache/tiers/disk_config.h"
#include "kvcache/tiers/disk_files.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern const struct cmd cmd_cache;

static char home[64], folder[96];
static const struct km_digest fp = {{0xF0, 1}};

static struct km_digest key_of(int n)
{
    return (struct km_digest){{(uint8_t)n, 7}};
}

/* Stores chunks 1 to n by a disk tier. */
static void store(int n)
{
    struct kv_geom pool = {.n_layers = 1, .n_kv_heads = 2, .head_dim = 64, .block_size = 16, .dtype = KM_BF16,
                           .layout = 1, .n_pages = 4, .page_bytes = 8192};
    struct kvc_geometry g;
    struct disk_config c = {.size = 1 << 20};
    struct kvc_tier *t;
    int32_t ids[32] = {0};
    snprintf(c.dir, sizeof c.dir, "%s", folder);
    assert_int_equal(kvc_geometry_init(&g, &pool, 32, true, NULL), 0);
    struct kvc_header *h = km_aligned(4096, g.header_bytes);
    char *payload = km_aligned(4096, g.payload_bytes);
    assert_int_equal(kvc_tier_disk.open(&t, &c, &g, &fp, NULL), 0);
    for (int i = 1; i <= n; i++) {
        const struct km_digest key = key_of(i);
        uint64_t word;
        memcpy(&word, key.b, 8);
        memset(payload, i, g.payload_bytes);
        kvc_header_init(h, &g, &fp, &key, 0, ids, 32);
        for (uint32_t p = 0; p < 2; p++)
            kvc_header_sums(h)[p] = km_page_sum((const uint64_t *)(payload + 8192 * p), 1024, g.token_words, 16, 16,
                                                km_page_sum_seed(word, p));
        kvc_header_seal(h);
        struct kvc_io io = {.kind = KVC_PUT, .key = key, .header = h, .payload = payload,
                            .payload_bytes = g.payload_bytes}, *list = &io;
        kvc_tier_disk.submit(t, &list, 1);
        while (!kvc_tier_disk.poll(t))
            usleep(100);
        assert_int_equal(io.rc, 0);
    }
    assert_true(kvc_tier_disk.close(t));
    km_free(h);
    km_free(payload);
}

/* Runs `kvmark cache` with these words; its stdout goes to `out`. Returns the exit status. */
static int cache(struct km_buf *out, const char *action, const char *dir, const char *option)
{
    char path[128], words[3][96], *argv[3];
    const char *const given[] = {action, dir, option};
    int n = 0, keep = dup(1), quiet = dup(2);
    for (; n < 3 && given[n]; n++) {
        snprintf(words[n], sizeof words[n], "%s", given[n]);
        argv[n] = words[n];
    }
    snprintf(path, sizeof path, "%s/stdout", home);
    fflush(stdout);
    int to = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600), null = open("/dev/null", O_WRONLY);
    dup2(to, 1);
    dup2(null, 2);
    int status = cmd_execute(&cmd_cache, n, argv);
    fflush(stdout);
    dup2(keep, 1);
    dup2(quiet, 2);
    close(keep);
    close(quiet);
    close(to);
    close(null);
    km_buf_clear(out);
    assert_int_equal(km_file_read(path, 0, out, NULL), 0);
    return status;
}

static double number(const struct km_buf *json, const char *key)
{
    cJSON *v = NULL;
    double n = -1;
    assert_int_equal(km_json_parse(json->data, json->len, &v, NULL), 0);
    assert_int_equal(km_json_num(v, key, true, 0, 1e18, &n, NULL), 0);
    cJSON_Delete(v);
    return n;
}

static void a_folder_is_described_verified_and_cleared(void **state)
{
    (void)state;
    struct km_buf out = {0};
    char hex[65], name[DISK_NAME], path[400];
    struct km_digest key = key_of(2);
    store(3);
    assert_int_equal(cache(&out, "stat", folder, NULL), CMD_OK);
    km_hex(&fp, hex);
    assert_non_null(strstr(out.data, hex));
    assert_non_null(strstr(out.data, "3 chunks of 32 tokens (1 layers, 2 KV heads of 64, bfloat16), 60 KiB, used "));
    assert_int_equal(cache(&out, "stat", folder, "--json"), CMD_OK);
    assert_true(number(&out, "chunks") == 3 && number(&out, "bytes") == 3 * 20480);
    assert_int_equal(cache(&out, "verify", folder, NULL), CMD_OK);
    assert_string_equal(out.data, "3 chunks, 0 bad\n");

    disk_name_final(&key, name);
    snprintf(path, sizeof path, "%s/%s/%.2s/%s", folder, hex, name, name);
    int fd = open(path, O_RDWR);
    assert_int_equal(pwrite(fd, "x", 1, 4096 + 8192), 1);
    close(fd);
    assert_int_equal(cache(&out, "verify", folder, NULL), CMD_FAILED);
    assert_non_null(strstr(out.data, path));
    assert_non_null(strstr(out.data, ": page 1 of 2 does not match its checksum\n3 chunks, 1 bad\n"));
    assert_int_equal(cache(&out, "verify", folder, "--json"), CMD_FAILED);
    assert_true(number(&out, "bad_chunks") == 1);

    snprintf(path, sizeof path, "%s/notes.txt", folder);
    assert_int_equal(km_file_write(path, "x", 1, NULL), 0);
    assert_int_equal(cache(&out, "clear", folder, NULL), CMD_OK);
    assert_string_equal(out.data, "3 chunks removed, 60 KiB\n");
    assert_int_equal(access(path, F_OK), 0);
    snprintf(path, sizeof path, "%s/%s", folder, hex);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(cache(&out, "stat", folder, "--json"), CMD_OK);
    assert_true(number(&out, "chunks") == 0);
    km_buf_free(&out);
}

static void wrong_command_lines_are_errors(void **state)
{
    (void)state;
    struct km_buf out = {0};
    assert_int_equal(cache(&out, "stat", "/nowhere", NULL), CMD_USAGE);
    assert_int_equal(cache(&out, "stat", NULL, NULL), CMD_USAGE);
    assert_int_equal(cache(&out, "wipe", home, NULL), CMD_USAGE);
    assert_int_equal(cache(&out, "clear", home, "more"), CMD_USAGE);
    assert_int_equal(cache(&out, "stat", home, "--jsn"), CMD_USAGE);
    km_buf_free(&out);
}

static int make_home(void **state)
{
    (void)state;
    strcpy(home, "/tmp/kvm-cache-command.XXXXXX");
    if (!mkdtemp(home))
        return -1;
    snprintf(folder, sizeof folder, "%s/kv", home);
    return 0;
}

static int remove_home(void **state)
{
    (void)state;
    char words[128];
    snprintf(words, sizeof words, "rm -r %s", home);
    return system(words);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_folder_is_described_verified_and_cleared),
                                       cmocka_unit_test(wrong_command_lines_are_errors)};
    return cmocka_run_group_tests(tests, make_home, remove_home);
}

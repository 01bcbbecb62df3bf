#include "kvcache/tiers/disk_verify.h"

#include "base/mem.h"
#include "base/page_sum.h"
#include "kvcache/header.h"
#include "kvcache/tiers/disk_files.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* Reads n bytes at offset `at`. */
static int read_all(int fd, void *to, size_t n, off_t at, struct km_err *err)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(fd, (char *)to + done, n - done, at + (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return km_fail(err, KM_EIO, "the file cannot be read: %s", strerror(errno));
        if (!got)
            return km_fail(err, KM_EFORMAT, "the file ends after %zu bytes", (size_t)at + done);
        done += (size_t)got;
    }
    return 0;
}

/* Compares the pages with the header's checksums; page: room for one. */
static int check_pages(int fd, struct kvc_header *h, const struct kvc_geometry *g, uint64_t *page, struct km_err *err)
{
    const uint32_t block = (uint32_t)g->pool.block_size;
    uint64_t word;
    memcpy(&word, h->key.b, sizeof word);
    for (uint32_t i = 0; i < h->n_pages; i++) {
        const uint32_t rest = h->n_tokens - i * block, tokens = rest < block ? rest : block;
        int rc = read_all(fd, page, g->pool.page_bytes, (off_t)(g->header_bytes + i * g->pool.page_bytes), err);
        if (rc)
            return rc;
        if (km_page_sum(page, g->pool.page_bytes / 8, g->token_words, block, tokens, km_page_sum_seed(word, i)) !=
            kvc_header_sums(h)[i])
            return km_fail(err, KM_EFORMAT, "page %u of %u does not match its checksum", i, h->n_pages);
    }
    return 0;
}

static int check_file(int fd, int64_t bytes, const struct km_digest *fingerprint, const struct km_digest *key,
                      const struct kvc_geometry *g, char *room, struct km_err *err)
{
    struct kvc_header *h = (struct kvc_header *)room;
    int rc = read_all(fd, h, g->header_bytes, 0, err);
    if (!rc)
        rc = kvc_header_check(h, g, fingerprint, key, (size_t)h->payload_bytes, err);
    const size_t whole =
        rc ? 0 : (g->header_bytes + h->payload_bytes + KVC_HEADER_BLOCK - 1) / KVC_HEADER_BLOCK * KVC_HEADER_BLOCK;
    if (!rc && (size_t)bytes != whole)
        rc = km_fail(err, KM_EFORMAT, "the file has %lld bytes instead of %zu", (long long)bytes, whole);
    return rc ? rc : check_pages(fd, h, g, (uint64_t *)(room + g->header_bytes), err);
}

int disk_verify(const char *root, const struct km_digest *fingerprint, const struct km_digest *key,
                const struct kvc_geometry *g, struct km_err *err)
{
    char *room = km_aligned(KVC_HEADER_BLOCK, g->header_bytes + g->pool.page_bytes);
    if (!room)
        return km_fail(err, KM_ENOMEM, "out of memory");
    int64_t bytes;
    int fd = disk_file_open(root, fingerprint, key, false, &bytes), rc;
    if (fd == -EBADMSG || fd == -ELOOP)
        rc = km_fail(err, KM_EFORMAT, "it is not a regular file");
    else
        rc = fd < 0 ? km_fail(err, fd == -ENOENT ? KM_ENOENT : KM_EIO, "the file cannot be opened: %s", strerror(-fd))
                    : check_file(fd, bytes, fingerprint, key, g, room, err);
    if (fd >= 0)
        close(fd);
    km_free(room);
    return rc;
}

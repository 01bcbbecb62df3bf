/* Compares the tokenizer with token ids from Hugging Face tokenizers (golden-*.json). Further tests: encoding takes
 * linear time, unsupported files are refused, any allocation may fail, and threads share a tokenizer. */
#include "base/test/test.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/mem.h"
#include "tokenizer/split.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TINY KVM_SOURCE_DIR "/models/qwen3-tiny-lm"
#define GOLDEN(name) KVM_SOURCE_DIR "/tokenizer/test/golden-" name ".json"

static struct tok *open_ok(const char *path)
{
    struct tok *t = NULL;
    struct km_err err;
    if (tok_open(&t, path, &err))
        fail_msg("%s", err.msg);
    return t;
}

static cJSON *json_ok(const char *path)
{
    cJSON *v = NULL;
    struct km_err err;
    if (km_json_file(path, 0, &v, &err))
        fail_msg("%s", err.msg);
    return v;
}

static const char *str(const cJSON *obj, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(obj, key);
    return cJSON_IsString(v) ? v->valuestring : NULL;
}

static struct tok_ids ids_of(const cJSON *array)
{
    struct tok_ids ids = {.v = km_malloc((size_t)cJSON_GetArraySize(array) * sizeof(int32_t))};
    const cJSON *v;
    cJSON_ArrayForEach(v, array) ids.v[ids.n++] = v->valueint;
    return ids;
}

/* Checks that text encodes to the token ids in `want`, appended to what the list holds; that tok_count agrees; and that
 * the ids decode to nfc, the normalized text. */
static void check_case(const struct tok *t, const char *text, const char *nfc, const cJSON *want, bool specials)
{
    size_t len = strlen(text);
    struct tok_ids ids = ids_of(want), got = {.v = km_malloc(sizeof(int32_t)), .n = 1, .cap = 1};
    struct km_buf back = {0};
    got.v[0] = 77;
    assert_int_equal(tok_encode(t, text, len, specials, &got, NULL), 0);
    if (got.n != ids.n + 1 || got.v[0] != 77 || memcmp(got.v + 1, ids.v, ids.n * sizeof *ids.v))
        fail_msg("%zu token ids instead of %zu, or different ones, for the text: %s", got.n - 1, ids.n, text);
    if (!specials)
        assert_int_equal(tok_count(t, text, len, NULL), ids.n);
    assert_int_equal(tok_decode(t, ids.v, ids.n, false, &back, NULL), 0);
    /* With added tokens, a mark after one is normalized on its own, so the decoded text need not be nfc. */
    if (!specials)
        assert_string_equal(km_buf_str(&back), nfc);
    km_buf_free(&back);
    km_free(ids.v);
    km_free(got.v);
}

/* Checks every code point in contexts that affect its token ids, by a SHA-256 of the ids of each block of 4,096. */
static void check_blocks(const struct tok *t, const cJSON *blocks)
{
    struct km_sha *sha;
    struct km_buf text = {0};
    struct tok_ids ids = {0};
    uint32_t c = 0;
    const cJSON *b;
    assert_int_equal(km_sha_new(&sha, NULL), 0);
    assert_int_equal(cJSON_GetArraySize(blocks), UNI_MAX / 0x1000);
    cJSON_ArrayForEach(b, blocks)
    {
        km_buf_clear(&text);
        for (uint32_t end = c + 0x1000; c < end; c++) {
            char u[4];
            size_t n = (size_t)uni_put(c, u);
            if (c >= 0xD800 && c < 0xE000)
                continue;
            km_buf_puts(&text, "e");
            km_buf_put(&text, u, n);
            km_buf_puts(&text, "\u0301\u0327a");
            km_buf_put(&text, u, n);
            km_buf_put(&text, u, n);
            km_buf_puts(&text, " ");
            km_buf_put(&text, u, n);
            km_buf_puts(&text, "1\n");
        }
        ids.n = 0;
        assert_int_equal(tok_encode(t, km_buf_str(&text), text.len, false, &ids, NULL), 0);
        char hex[65];
        km_sha_begin(sha);
        km_sha_add(sha, ids.v, ids.n * sizeof *ids.v);
        struct km_digest d = km_sha_end(sha);
        km_hex(&d, hex);
        hex[16] = 0;
        if (strcmp(hex, b->valuestring))
            fail_msg("some of the 4,096 code points up to U+%04X have different token ids", c - 1);
    }
    km_sha_free(sha);
    km_buf_free(&text);
    km_free(ids.v);
}

/* golden: the file with the token ids. texts: the file with the texts, which all golden files share. */
static void check_golden(const char *tokenizer, const char *golden, const char *texts)
{
    struct tok *t = open_ok(tokenizer);
    cJSON *g = json_ok(golden), *with_text = json_ok(texts);
    const cJSON *v, *from = cJSON_GetObjectItemCaseSensitive(with_text, "cases")->child;
    int n = 0;
    cJSON_ArrayForEach(v, cJSON_GetObjectItemCaseSensitive(g, "cases"))
    {
        const char *text = str(from, "text"), *nfc = str(from, "nfc");
        const cJSON *ids = cJSON_GetObjectItemCaseSensitive(v, "ids");
        const cJSON *plain = cJSON_GetObjectItemCaseSensitive(v, "plain");
        check_case(t, text, nfc ? nfc : text, ids, true);
        check_case(t, text, nfc ? nfc : text, plain ? plain : ids, false);
        from = from->next;
        n++;
    }
    assert_true(n > 150);
    n = 0;
    cJSON_ArrayForEach(v, cJSON_GetObjectItemCaseSensitive(g, "decode"))
    {
        struct tok_ids ids = ids_of(cJSON_GetObjectItemCaseSensitive(v, "ids"));
        const char *skipped = str(v, "skipped");
        struct km_buf b = {0};
        assert_int_equal(tok_decode(t, ids.v, ids.n, false, &b, NULL), 0);
        assert_string_equal(km_buf_str(&b), str(v, "text"));
        km_buf_clear(&b);
        assert_int_equal(tok_decode(t, ids.v, ids.n, true, &b, NULL), 0);
        assert_string_equal(km_buf_str(&b), skipped ? skipped : str(v, "text"));
        km_buf_free(&b);
        km_free(ids.v);
        n++;
    }
    assert_true(n > 40);
    check_blocks(t, cJSON_GetObjectItemCaseSensitive(g, "blocks"));
    cJSON_Delete(g);
    cJSON_Delete(with_text);
    tok_free(t);
}

static void tiny_ids_equal_hugging_faces(void **state)
{
    (void)state;
    check_golden(TINY, GOLDEN("tiny-lm"), GOLDEN("tiny-lm"));
}

static void qwen3_ids_equal_hugging_faces(void **state)
{
    (void)state;
    const char *qwen = km_test_data("qwen3-tokenizer.json");
    if (!qwen)
        skip();
    check_golden(qwen, GOLDEN("qwen3"), GOLDEN("tiny-lm"));
    struct tok *t = open_ok(qwen);
    assert_int_equal(tok_vocab_size(t), 151643);
    assert_int_equal(tok_total(t), 151669);
    assert_int_equal(tok_added_id(t, "<think>"), 151667);
    assert_false(tok_is_special(t, 151667));
    assert_true(tok_is_special(t, 151645));
    tok_free(t);
}

static void pieces_follow_the_split_pattern(void **state)
{
    (void)state;
    static const struct {
        const char *text, *pieces; /* pieces joined by | */
    } t[] = {{"Hello world", "Hello| world"},
             {"it's IT'S we'Ll 'ret", "it|'s| IT|'S| we|'Ll| '|ret"},
             {"'\u017fx '\u212a", "'\u017f|x| '|\u212a"},
             {"'rex", "'re|x"},
             {"a1b22", "a|1|b|2|2"},
             {"x  y", "x| | y"},
             {"x   ", "x|   "},
             {" \n \n  y", " \n \n| | y"},
             {"\ty\t1", "\ty|\t|1"},
             {"!?\n\n x", "!?\n\n| x"},
             {"  !", " | !"},
             {"\t!", "\t|!"},
             {"\rx\nx", "\r|x|\n|x"},
             {"-x #-x", "-x| #-|x"},
             {"\u00a0x\u3000\u3000", "\u00a0x|\u3000\u3000"},
             {"e\u0301x", "e|\u0301x"}};
    uint8_t *table = uni_table();
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct km_buf b = {0};
        const char *s = t[i].text;
        for (size_t n = strlen(s), len; n; s += len, n -= len) {
            len = spl_next(table, s, n);
            km_buf_puts(&b, b.len ? "|" : "");
            km_buf_put(&b, s, len);
        }
        assert_string_equal(km_buf_str(&b), t[i].pieces);
        km_buf_free(&b);
    }
    km_free(table);
}

/* A quadratic step would take minutes. The limit of 8 s allows for sanitizers and busy machines. */
static void hostile_text_takes_linear_time(void **state)
{
    (void)state;
    static const char *const units[] = {
        "a", "^", " ",      "7",           "\n",   "a ",       "\u0301", "\u0301\u0327",
        "'", "<", "\r\n  ", "<|im_start|", "\xFF", "\xE2\x82", "\u3000", "\u1100\u1161\u11a8"};
    const size_t size = 1 << 20;
    struct tok *t = open_ok(TINY);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        struct km_buf text = {0};
        struct tok_ids ids = {0};
        while (text.len < size)
            km_buf_puts(&text, units[i]);
        int64_t from = km_now_ns();
        assert_int_equal(tok_encode(t, text.data, text.len, true, &ids, NULL), 0);
        assert_true(km_now_ns() - from < 8000000000);
        assert_true(ids.n > 0);
        km_free(ids.v);
        km_buf_free(&text);
    }
    tok_free(t);
}

static void ill_formed_bytes_are_replaced(void **state)
{
    (void)state;
#define FFFD "\xEF\xBF\xBD" /* U+FFFD as UTF-8 */
    static const struct {
        const char *bytes;
        size_t n;
        const char *text;
    } t[] = {{"y\x80z", 3, "y" FFFD "z"},
             {"\xC0\xAF", 2, FFFD FFFD},
             {"\xE2\x82", 2, FFFD},
             {"\xE2\x82z", 3, FFFD "z"},
             {"\xF0\x9F\x98", 3, FFFD},
             {"\xF0\x9F\xE2\x82\xAC", 5, FFFD "\xE2\x82\xAC"},
             {"\xED\xA0\x80", 3, FFFD FFFD FFFD},
             {"\xF4\x90\x80\x80", 4, FFFD FFFD FFFD FFFD},
             {"\xF0\x80\x80", 3, FFFD FFFD FFFD},
             {"\xE0\x9F\x80", 3, FFFD FFFD FFFD},
             {"\xFF\xFE", 2, FFFD FFFD},
             {"\xC3\xC3\xA9", 3, FFFD "\xC3\xA9"}};
    struct tok *tok = open_ok(TINY);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct tok_ids a = {0}, b = {0};
        struct km_buf text = {0};
        assert_int_equal(tok_encode(tok, t[i].bytes, t[i].n, true, &a, NULL), 0);
        assert_int_equal(tok_encode(tok, t[i].text, strlen(t[i].text), true, &b, NULL), 0);
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.v, b.v, a.n * sizeof *a.v);
        /* Decoding follows the same rule: the token ids of the single bytes give the same text. */
        b.n = 0;
        for (size_t k = 0; k < t[i].n; k++)
            for (int32_t id = 0; id < 256; id++) {
                size_t len;
                const char *p = tok_bytes(tok, id, &len);
                if (len == 1 && *p == t[i].bytes[k]) {
                    assert_true(b.n < b.cap);
                    b.v[b.n++] = id;
                }
            }
        assert_int_equal(b.n, t[i].n);
        assert_int_equal(tok_decode(tok, b.v, b.n, false, &text, NULL), 0);
        assert_string_equal(text.data, t[i].text);
        km_buf_free(&text);
        km_free(a.v);
        km_free(b.v);
    }
    tok_free(tok);
}

static void vocabulary_lookups_and_errors(void **state)
{
    (void)state;
    struct tok *t = open_ok(TINY "/tokenizer.json"), *none = NULL;
    struct km_err err;
    size_t len;
    assert_int_equal(tok_vocab_size(t), 4093);
    assert_int_equal(tok_total(t), 4096);
    assert_int_equal(tok_added_id(t, "<|im_start|>"), 4094);
    assert_int_equal(tok_added_id(t, "<|im_start"), -1);
    assert_int_equal(tok_added_id(t, "<|im_start|>x"), -1);
    assert_int_equal(tok_added_id(t, ""), -1);
    assert_true(tok_is_special(t, 4095));
    assert_false(tok_is_special(t, 0));
    assert_false(tok_is_special(t, -1));
    assert_false(tok_is_special(t, 4096));
    assert_memory_equal(tok_bytes(t, 4093, &len), "<|endoftext|>", 13);
    assert_int_equal(len, 13);
    assert_null(tok_bytes(t, 4096, &len));
    assert_null(tok_bytes(t, -1, &len));

    struct km_buf out = {0};
    km_buf_puts(&out, "kept");
    assert_int_equal(tok_decode(t, (int32_t[]){0, 4096}, 2, false, &out, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "4096"));
    assert_string_equal(out.data, "kept");
    km_buf_free(&out);

    /* Without specials, the text of a role marker is split like any other text. */
    struct tok_ids a = {0};
    assert_int_equal(tok_encode(t, "<|im_end|>", 10, false, &a, NULL), 0);
    assert_true(a.n > 1);
    for (size_t i = 0; i < a.n; i++)
        assert_true(a.v[i] < 4093);
    /* A text may contain NUL. */
    a.n = 0;
    assert_int_equal(tok_encode(t, "a\0b", 3, true, &a, NULL), 0);
    assert_int_equal(a.n, 3);
    km_free(a.v);

    assert_int_equal(tok_open(&none, KVM_SOURCE_DIR "/no-such", &err), KM_ENOENT);
    assert_int_equal(tok_open(&none, KVM_SOURCE_DIR "/cmake", &err), KM_ENOENT);
    assert_non_null(strstr(err.msg, "cmake/tokenizer.json"));
    assert_null(none);
    tok_free(t);
    tok_free(NULL);
}

/* The item at a path such as "model/merges/3". */
static cJSON *item_at(cJSON *root, const char *path)
{
    char part[64];
    for (int used; *path && sscanf(path, "%63[^/]%n", part, &used) == 1; path += used + (path[used] == '/'))
        root =
            cJSON_IsArray(root) ? cJSON_GetArrayItem(root, atoi(part)) : cJSON_GetObjectItemCaseSensitive(root, part);
    return root;
}

static int try_text(const char *text, struct km_err *err)
{
    char path[] = "/tmp/kvm-tok-XXXXXX";
    struct tok *t = NULL;
    close(mkstemp(path));
    assert_int_equal(km_file_write(path, text, strlen(text), NULL), 0);
    int rc = tok_open(&t, path, err);
    unlink(path);
    if (rc)
        assert_null(t);
    tok_free(t);
    return rc;
}

static void errors_name_what_is_unsupported(void **state)
{
    (void)state;
    static const struct {
        const char *where, *key, *value, *error; /* value NULL: the key is removed */
    } t[] = {
        {"model", "merges", NULL, "lacks the key \"merges\""},
        {"model", "merges", "{}", "\"merges\" must be an array"},
        {"model", "merges", "[[\"a\"]]", "merge 0 is not a pair"},
        {"model", "merges", "[\"a b c\"]", "merge 0 is not a pair"},
        {"model", "merges", "[7]", "merge 0 is not a pair"},
        {"model", "merges", "[[\"\",\"a\"]]", "merge 0 is not a pair"},
        {"model", "merges", "[[\"h\",\"e\"],[\"q\",\"zzzz\"]]", "merge 1 joins \"q\" and \"zzzz\", but the second"},
        {"model", "merges", "[[\"z\",\"q\"]]", "but the merged token is not in the vocabulary"},
        {"model", "merges", "[[\"h\",\"e\"],[\"h\",\"e\"]]", "as an earlier merge does"},
        {"model", "merges", "[[\"\u4e00\",\"e\"]]", "the first is not in the vocabulary"},
        {"model", "vocab", NULL, "lacks the key \"vocab\""},
        {"model", "vocab", "[]", "\"vocab\" must be"},
        {"model", "vocab", "{}", "<|endoftext|>\" has the id 4093; with 3 tokens, ids must be 0 to 2"},
        {"model", "type", "\"WordPiece\"", "\"type\" of \"model\" is \"WordPiece\""},
        {"model", "dropout", "0.1", "\"dropout\" of \"model\" is 0.1"},
        {"model", "byte_fallback", "true", "byte_fallback"},
        {"model", "ignore_merges", "true", "ignore_merges"},
        {"model", "unk_token", "\"<unk>\"", "unk_token"},
        {"model", "surprise", "1", "has the key \"surprise\""},
        {"model/vocab", "!", "-1", "has the id -1"},
        {"model/vocab", "!", "1", "have the same id 1"},
        {"model/vocab", "!", "4093", "has the id 4093; 4093 tokens must have the ids 0 to 4092"},
        {"model/vocab", "!", "2147483648", "has the id 2147483648"},
        {"model/vocab", "!", "1e300", "has the id 1"},
        {"model/vocab", "!", "0.5", "has the id 0.5"},
        {"model/vocab", "!", "\"0\"", "has the id"},
        {"model/vocab", "<0x-1>", "4093", "\"<|endoftext|>\" has the id 4093, which is another token's"},
        {"model/vocab", "<|im_end|>", "4093", "another"},
        {"added_tokens/0", "id", "2147483648", "has the id 2147483648"},
        {"added_tokens/0", "id", "4094", "another token's"},
        {"added_tokens/0", "id", "5", "another token's"},
        {"added_tokens/0", "id", "4096", "has the id 4096"},
        {"added_tokens/0", "id", "-5", "has the id -5"},
        {"added_tokens/0", "id", "\"x\"", "must have a number"},
        {"added_tokens/0", "content", "\"\"", "must have a number as \"id\" and some text"},
        {"added_tokens/0", "content", "\"<|im_end|>\"", "occurs twice"},
        {"added_tokens/0", "content", "\"he\"", "in the vocabulary under another id"},
        {"added_tokens/0", "normalized", "true", "\"normalized\" of an added token is true"},
        {"added_tokens/0", "lstrip", "true", "lstrip"},
        {"", "added_tokens", "{}", "must be an array"},
        {"", "added_tokens", "[3]", "must be a JSON object"},
        {"", "normalizer", "null", "\"normalizer\" must be a JSON object"},
        {"normalizer", "type", "\"NFKC\"", "is \"NFKC\"; only \"NFC\""},
        {"pre_tokenizer", "type", "\"Metaspace\"", "Metaspace"},
        {"pre_tokenizer", "pretokenizers", "[]", "array of two"},
        {"pre_tokenizer/pretokenizers/0/pattern", "Regex", "\"(a+)+$\"", "the split pattern is (a+)+$"},
        {"pre_tokenizer/pretokenizers/0", "behavior", "\"Removed\"", "Removed"},
        {"pre_tokenizer/pretokenizers/1", "use_regex", "true", "use_regex"},
        {"pre_tokenizer/pretokenizers/1", "add_prefix_space", NULL, "lacks the key \"add_prefix_space\""},
        {"", "post_processor", "{\"type\":\"TemplateProcessing\"}", "TemplateProcessing"},
        {"", "truncation", "{\"max_length\":4}", "truncation"},
        {"", "decoder", NULL, "lacks the key \"decoder\""},
        {"", "model", "7", "\"model\" must be"},
    };
    struct km_err err;
    struct km_buf file = {0};
    assert_int_equal(km_file_read(TINY "/tokenizer.json", 0, &file, NULL), 0);
    assert_int_equal(try_text(file.data, &err), 0);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        cJSON *root = cJSON_Parse(file.data), *obj = item_at(root, t[i].where);
        assert_non_null(obj);
        cJSON *value = t[i].value ? cJSON_Parse(t[i].value) : NULL;
        if (!value)
            cJSON_DeleteItemFromObjectCaseSensitive(obj, t[i].key);
        else if (!cJSON_ReplaceItemInObjectCaseSensitive(obj, t[i].key, value))
            cJSON_AddItemToObject(obj, t[i].key, value);
        char *text = cJSON_PrintUnformatted(root);
        int rc = try_text(text, &err);
        if (rc != KM_EFORMAT || !strstr(err.msg, t[i].error))
            fail_msg("%s.%s = %s gave %d and \"%s\" instead of \"%s\"", t[i].where, t[i].key,
                     t[i].value ? t[i].value : "nothing", rc, rc ? err.msg : "", t[i].error);
        cJSON_free(text);
        cJSON_Delete(root);
    }
    /* Replaces the spelling of byte 0's token by another one of two bytes. */
    static const char *const names[][2] = {{"zq", "no token for the byte 0x00"},
                                           {"\u00ad", "(id 188) is not spelled in the byte-level alphabet"},
                                           {"\0", "(id 188) is empty"},
                                           {"th", "\"th\" occurs twice"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        cJSON *root = cJSON_Parse(file.data);
        memcpy(item_at(root, "model/vocab/\u0100")->string, names[i][0], 2);
        char *text = cJSON_PrintUnformatted(root);
        assert_int_equal(try_text(text, &err), KM_EFORMAT);
        if (!strstr(err.msg, names[i][1]))
            fail_msg("the error is \"%s\" instead of \"%s\"", err.msg, names[i][1]);
        cJSON_free(text);
        cJSON_Delete(root);
    }
    km_buf_free(&file);
    assert_int_equal(try_text("", &err), KM_EFORMAT);
    assert_int_equal(try_text("[]", &err), KM_EFORMAT);
    struct km_buf deep = {0};
    for (int i = 0; i < 100000; i++)
        km_buf_puts(&deep, "[");
    assert_int_equal(try_text(deep.data, &err), KM_EFORMAT);
    km_buf_free(&deep);
}

/* Files of older versions write a merge as "a b". */
static void merges_may_be_strings(void **state)
{
    (void)state;
    cJSON *root = json_ok(TINY "/tokenizer.json"), *merges = item_at(root, "model/merges"), *m;
    cJSON *strings = cJSON_CreateArray();
    struct km_buf b = {0};
    cJSON_ArrayForEach(m, merges)
    {
        km_buf_clear(&b);
        km_buf_printf(&b, "%s %s", m->child->valuestring, m->child->next->valuestring);
        cJSON_AddItemToArray(strings, cJSON_CreateString(b.data));
    }
    cJSON_ReplaceItemInObjectCaseSensitive(item_at(root, "model"), "merges", strings);
    char *text = cJSON_PrintUnformatted(root), path[] = "/tmp/kvm-tok-XXXXXX";
    close(mkstemp(path));
    assert_int_equal(km_file_write(path, text, strlen(text), NULL), 0);
    struct tok *old = open_ok(path), *new = open_ok(TINY);
    unlink(path);
    struct tok_ids x = {0}, y = {0};
    km_buf_clear(&b);
    km_file_read(KVM_SOURCE_DIR "/tokenizer/tokenizer.h", 0, &b, NULL);
    assert_int_equal(tok_encode(old, b.data, b.len, true, &x, NULL), 0);
    assert_int_equal(tok_encode(new, b.data, b.len, true, &y, NULL), 0);
    assert_true(x.n > 500 && x.n < b.len / 2);
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.v, y.v, x.n * sizeof *x.v);
    km_free(x.v);
    km_free(y.v);
    km_buf_free(&b);
    tok_free(old);
    tok_free(new);
    cJSON_free(text);
    cJSON_Delete(root);
}

static const char failing_text[] = "It's <|im_start|>cafe\u0301 \xFF\u0301\u0327 antidisestablishmentarianism";

static void every_allocation_may_fail(void **state)
{
    (void)state;
    int64_t before = km_mem_stats(KM_MEM_HOST).current;
    struct km_err err;
    struct tok *t = NULL;
    long n = 1;
    for (int rc = KM_ENOMEM; rc; n++) {
        assert_true(n < 1000);
        km_mem_fail_at(n);
        rc = tok_open(&t, TINY, &err);
        km_mem_fail_at(0);
        if (rc) {
            assert_int_equal(rc, KM_ENOMEM);
            assert_null(t);
            assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
        }
    }
    assert_true(n > 15);
    before = km_mem_stats(KM_MEM_HOST).current;
    struct tok_ids ids = {0};
    n = 1;
    for (int rc = KM_ENOMEM; rc; n++) {
        assert_true(n < 1000);
        km_mem_fail_at(n);
        rc = tok_encode(t, failing_text, sizeof failing_text - 1, true, &ids, &err);
        km_mem_fail_at(0);
        assert_true(rc == 0 || (rc == KM_ENOMEM && ids.n == 0));
        if (rc) {
            km_free(ids.v);
            ids = (struct tok_ids){0};
            assert_int_equal(km_mem_stats(KM_MEM_HOST).current, before);
        }
    }
    assert_true(n > 6);
    struct km_buf out = {0};
    n = 1;
    for (int rc = KM_ENOMEM; rc; n++) {
        assert_true(n < 1000);
        km_mem_fail_at(n);
        rc = tok_decode(t, ids.v, ids.n, false, &out, &err);
        km_mem_fail_at(0);
        assert_true(rc == 0 || (rc == KM_ENOMEM && out.len == 0));
        if (rc)
            km_buf_free(&out);
    }
    assert_non_null(strstr(out.data, "caf\u00e9"));
    assert_true(n > 2);
    km_buf_free(&out);
    km_free(ids.v);
    tok_free(t);
}

/* One thread's encode of the whole text, by a tokenizer whose memo (bpe.h) is still empty. */
struct encode_call {
    const struct tok *t;
    const struct km_buf *text;
    struct tok_ids ids;
    int rc;
};

static void *encode_thread(void *arg)
{
    struct encode_call *s = arg;
    s->rc = tok_encode(s->t, s->text->data, s->text->len, true, &s->ids, NULL);
    return NULL;
}

static void threads_share_a_vocabulary(void **state)
{
    (void)state;
    enum { THREADS = 4 };
    struct tok *t = open_ok(TINY), *alone = open_ok(TINY);
    struct km_buf text = {0};
    assert_int_equal(km_file_read(GOLDEN("tiny-lm"), 0, &text, NULL), 0);
    struct encode_call want = {.t = alone, .text = &text}, s[THREADS];
    pthread_t id[THREADS];
    encode_thread(&want);
    assert_int_equal(want.rc, 0);
    for (int i = 0; i < THREADS; i++) {
        s[i] = (struct encode_call){.t = t, .text = &text};
        assert_int_equal(pthread_create(&id[i], NULL, encode_thread, &s[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(id[i], NULL);
        assert_int_equal(s[i].rc, 0);
        assert_int_equal(s[i].ids.n, want.ids.n);
        assert_memory_equal(s[i].ids.v, want.ids.v, want.ids.n * sizeof *want.ids.v);
        km_free(s[i].ids.v);
    }
    km_free(want.ids.v);
    km_buf_free(&text);
    tok_free(t);
    tok_free(alone);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_ids_equal_hugging_faces),    cmocka_unit_test(qwen3_ids_equal_hugging_faces),
        cmocka_unit_test(pieces_follow_the_split_pattern), cmocka_unit_test(hostile_text_takes_linear_time),
        cmocka_unit_test(ill_formed_bytes_are_replaced),   cmocka_unit_test(vocabulary_lookups_and_errors),
        cmocka_unit_test(errors_name_what_is_unsupported), cmocka_unit_test(merges_may_be_strings),
        cmocka_unit_test(every_allocation_may_fail),       cmocka_unit_test(threads_share_a_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

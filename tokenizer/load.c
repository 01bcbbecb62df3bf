/* Checking and reading tokenizer.json.
 *
 * Every key outside the vocabulary, the merges and the added tokens must have a value under which this library encodes
 * as Hugging Face tokenizers does. The tables below list these values. A file of another model family fails with an
 * error that names the key, instead of giving other token ids. */
#include "tokenizer/load.h"

#include "base/buf.h"
#include "base/json.h"
#include "base/mem.h"
#include "tokenizer/split.h"
#include "tokenizer/unicode.h"

#include <math.h>
#include <string.h>

enum {
    MAX_FILE = 512 << 20, /* bytes; Qwen3's file has 11 MB */
    MAX_TOKENS = 1 << 24
};

/* A key that an object may have. */
struct expect {
    const char *key;
    bool need;
    const char *value, *other; /* the accepted values as compact JSON; value NULL: any; other NULL: no second one */
};

static const struct expect top_keys[] = {
    {"version", false, NULL, NULL},        {"truncation", false, "null", NULL}, {"padding", false, "null", NULL},
    {"added_tokens", false, NULL, NULL},   {"normalizer", true, NULL, NULL},    {"pre_tokenizer", true, NULL, NULL},
    {"post_processor", false, NULL, NULL}, {"decoder", true, NULL, NULL},       {"model", true, NULL, NULL}};
static const struct expect normalizer_keys[] = {{"type", true, "\"NFC\"", NULL}};
static const struct expect sequence_keys[] = {{"type", true, "\"Sequence\"", NULL},
                                              {"pretokenizers", true, NULL, NULL}};
static const struct expect split_keys[] = {{"type", true, "\"Split\"", NULL},
                                           {"pattern", true, NULL, NULL},
                                           {"behavior", true, "\"Isolated\"", NULL},
                                           {"invert", false, "false", NULL}};
static const struct expect pattern_keys[] = {{"Regex", true, NULL, NULL}};
static const struct expect bytes_keys[] = {{"type", true, "\"ByteLevel\"", NULL},
                                           {"add_prefix_space", true, "false", NULL},
                                           {"trim_offsets", false, NULL, NULL},
                                           {"use_regex", true, "false", NULL}};
/* As a post-processor, ByteLevel's options change only offsets into the text; as a decoder, it has no options. */
static const struct expect after_keys[] = {{"type", true, "\"ByteLevel\"", NULL},
                                           {"add_prefix_space", false, NULL, NULL},
                                           {"trim_offsets", false, NULL, NULL},
                                           {"use_regex", false, NULL, NULL}};
static const struct expect model_keys[] = {{"type", true, "\"BPE\"", NULL},
                                           {"dropout", false, "null", NULL},
                                           {"unk_token", false, "null", NULL},
                                           {"continuing_subword_prefix", false, "null", "\"\""},
                                           {"end_of_word_suffix", false, "null", "\"\""},
                                           {"fuse_unk", false, "false", NULL},
                                           {"byte_fallback", false, "false", NULL},
                                           {"ignore_merges", false, "false", NULL},
                                           {"vocab", true, NULL, NULL},
                                           {"merges", true, NULL, NULL}};
static const struct expect added_keys[] = {
    {"id", true, NULL, NULL},          {"content", true, NULL, NULL},    {"single_word", false, "false", NULL},
    {"lstrip", false, "false", NULL},  {"rstrip", false, "false", NULL}, {"normalized", true, "false", NULL},
    {"special", true, "true", "false"}};
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

/* Checks that v is one of the accepted values of e. */
static int check_value(const cJSON *v, const char *where, const struct expect *e, struct km_err *err)
{
    if (!e->value)
        return 0;
    char *text = cJSON_PrintUnformatted(v);
    if (!text)
        return km_fail(err, KM_ENOMEM, "out of memory reading %s", where);
    bool ok = !strcmp(text, e->value) || (e->other && !strcmp(text, e->other));
    int rc = ok ? 0
                : km_fail(err, KM_EFORMAT, "\"%s\" of %s is %.80s; only %s%s%s is supported (Qwen2 and Qwen3)", e->key,
                          where, text, e->value, e->other ? " or " : "", e->other ? e->other : "");
    cJSON_free(text);
    return rc;
}

/* Checks that obj is an object with keys of e[0..n) only, and with all of them that are needed. */
static int check_object(const cJSON *obj, const char *where, const struct expect *e, int n, struct km_err *err)
{
    if (!cJSON_IsObject(obj))
        return km_fail(err, KM_EFORMAT, "%s must be a JSON object", where);
    const cJSON *v;
    cJSON_ArrayForEach(v, obj)
    {
        int i = 0;
        while (i < n && strcmp(v->string, e[i].key))
            i++;
        if (i == n)
            return km_fail(err, KM_EFORMAT, "%s has the key \"%.80s\", which is not in a Qwen2 or Qwen3 tokenizer.json",
                           where, v->string);
        int rc = check_value(v, where, &e[i], err);
        if (rc)
            return rc;
    }
    for (int i = 0; i < n; i++)
        if (e[i].need && !cJSON_GetObjectItemCaseSensitive(obj, e[i].key))
            return km_fail(err, KM_EFORMAT, "%s lacks the key \"%s\"", where, e[i].key);
    return 0;
}

static const cJSON *get(const cJSON *obj, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(obj, key);
}

/* Checks everything except the vocabulary, the merges and the added tokens. */
static int check_settings(const cJSON *root, struct km_err *err)
{
    int rc;
    if ((rc = check_object(root, "tokenizer.json", top_keys, COUNT(top_keys), err)) ||
        (rc = check_object(get(root, "normalizer"), "\"normalizer\"", normalizer_keys, COUNT(normalizer_keys), err)) ||
        (rc =
             check_object(get(root, "pre_tokenizer"), "\"pre_tokenizer\"", sequence_keys, COUNT(sequence_keys), err)) ||
        (rc = check_object(get(root, "decoder"), "\"decoder\"", after_keys, COUNT(after_keys), err)) ||
        (rc = check_object(get(root, "model"), "\"model\"", model_keys, COUNT(model_keys), err)))
        return rc;
    const cJSON *post = get(root, "post_processor");
    if (post && !cJSON_IsNull(post) &&
        (rc = check_object(post, "\"post_processor\"", after_keys, COUNT(after_keys), err)))
        return rc;
    const cJSON *steps = get(get(root, "pre_tokenizer"), "pretokenizers");
    if (!cJSON_IsArray(steps) || cJSON_GetArraySize(steps) != 2)
        return km_fail(err, KM_EFORMAT, "\"pretokenizers\" must be an array of two, Split and ByteLevel");
    const cJSON *split = cJSON_GetArrayItem(steps, 0);
    if ((rc = check_object(split, "the first pre-tokenizer", split_keys, COUNT(split_keys), err)) ||
        (rc = check_object(get(split, "pattern"), "\"pattern\"", pattern_keys, COUNT(pattern_keys), err)) ||
        (rc = check_object(cJSON_GetArrayItem(steps, 1), "the second pre-tokenizer", bytes_keys, COUNT(bytes_keys),
                           err)))
        return rc;
    const cJSON *regex = get(get(split, "pattern"), "Regex");
    if (!cJSON_IsString(regex) || strcmp(regex->valuestring, SPL_PATTERN))
        return km_fail(err, KM_EFORMAT, "the split pattern is %.200s; only that of Qwen2 and Qwen3 is supported",
                       cJSON_IsString(regex) ? regex->valuestring : "not a string");
    return 0;
}

/* The byte-level alphabet of GPT-2, in which the file spells tokens: one printable character per byte. The bytes of
 * printable Latin-1 characters are spelled by these characters, the 68 others by U+0100 and up. */
struct alphabet {
    int16_t byte[256 + 68]; /* by code point; -1: the code point spells no byte */
};

static void alphabet_init(struct alphabet *a)
{
    memset(a, -1, sizeof *a);
    for (int b = 0, spare = 256; b < 256; b++) {
        bool prints = (b >= '!' && b <= '~') || (b >= 0xA1 && b != 0xAD);
        a->byte[prints ? b : spare++] = (int16_t)b;
    }
}

/* Writes the bytes that text[0..n) spells to out, which has space for n. Returns their number, or -1 if a character
 * spells no byte. */
static int64_t alphabet_bytes(const struct alphabet *a, const char *text, size_t n, char *out)
{
    int64_t len = 0;
    int step;
    for (size_t i = 0; i < n; i += (size_t)step) {
        uint32_t c = uni_get(text + i, &step);
        if (c >= sizeof a->byte / sizeof *a->byte || a->byte[c] < 0)
            return -1;
        out[len++] = (char)a->byte[c];
    }
    return len;
}

/* State of tok_load_file. */
struct loading {
    struct tok *t;
    struct alphabet alphabet;
    const cJSON **by_id; /* [total] item of the vocabulary, or object of the added token */
    char *scratch;       /* [cap] bytes of the current token or merge */
    size_t cap;
};

static int reserve_scratch(struct loading *l, size_t n, struct km_err *err)
{
    if (n <= l->cap)
        return 0;
    char *p = km_realloc(l->scratch, n + n / 2 + 64);
    if (!p)
        return km_fail(err, KM_ENOMEM, "out of memory for a token of %zu bytes", n);
    l->scratch = p;
    l->cap = n + n / 2 + 64;
    return 0;
}

/* The id that v holds, if it is a whole number in [0, total); else -1. */
static int32_t read_id(const cJSON *v, int32_t total)
{
    double d = cJSON_IsNumber(v) ? v->valuedouble : -1;
    return d >= 0 && d < total && d == floor(d) ? (int32_t)d : -1;
}

/* Fills by_id and adds the tokens' bytes to *size. Checks that the ids are 0 .. total - 1, each used once. */
static int index_ids(struct loading *l, const cJSON *vocab, int32_t n, const cJSON *added, int32_t total, size_t *size,
                     struct km_err *err)
{
    const cJSON *v;
    cJSON_ArrayForEach(v, vocab)
    {
        int32_t id = read_id(v, n);
        if (id < 0)
            return km_fail(err, KM_EFORMAT, "the token \"%.60s\" has the id %.17g; %d tokens must have the ids 0 to %d",
                           v->string, cJSON_IsNumber(v) ? v->valuedouble : NAN, n, n - 1);
        if (l->by_id[id])
            return km_fail(err, KM_EFORMAT, "the tokens \"%.60s\" and \"%.60s\" have the same id %d",
                           l->by_id[id]->string, v->string, id);
        l->by_id[id] = v;
        *size += strlen(v->string);
    }
    cJSON_ArrayForEach(v, added)
    {
        const char *text = get(v, "content")->valuestring;
        int32_t id = read_id(get(v, "id"), total);
        if (id < 0)
            return km_fail(err, KM_EFORMAT,
                           "the added token \"%.60s\" has the id %.17g; with %d tokens, ids must be 0 to %d", text,
                           cJSON_GetNumberValue(get(v, "id")), total, total - 1);
        if (id < n ? strcmp(l->by_id[id]->string, text) : l->by_id[id] != NULL)
            return km_fail(err, KM_EFORMAT,
                           "the added token \"%.60s\" has the id %d, which is another token's; ids must be unique",
                           text, id);
        if (id >= n) {
            l->by_id[id] = v;
            *size += strlen(text);
        }
    }
    return 0;
}

/* Checks each added token, and adds the number of ids beyond the vocabulary of n tokens to *beyond. */
static int check_added(const cJSON *added, int32_t n, int32_t *beyond, struct km_err *err)
{
    const cJSON *v;
    if (added && !cJSON_IsArray(added))
        return km_fail(err, KM_EFORMAT, "\"added_tokens\" must be an array");
    cJSON_ArrayForEach(v, added)
    {
        int rc = check_object(v, "an added token", added_keys, COUNT(added_keys), err);
        if (rc)
            return rc;
        const cJSON *text = get(v, "content"), *id = get(v, "id");
        if (!cJSON_IsString(text) || !*text->valuestring || !cJSON_IsNumber(id))
            return km_fail(err, KM_EFORMAT, "an added token must have a number as \"id\" and some text as \"content\"");
        *beyond += id->valuedouble >= n;
    }
    return 0;
}

/* Adds all tokens to the vocabulary, in the order of ids. */
static int load_vocabulary(struct loading *l, struct km_err *err)
{
    struct voc *voc = &l->t->voc;
    for (int32_t id = 0; id < voc->total; id++) {
        bool added = id >= voc->n;
        const char *text = added ? get(l->by_id[id], "content")->valuestring : l->by_id[id]->string;
        size_t len = strlen(text);
        int rc = reserve_scratch(l, len, err);
        if (rc)
            return rc;
        int64_t n = alphabet_bytes(&l->alphabet, text, len, l->scratch);
        if (n == 0 || (n < 0 && !added))
            return km_fail(err, KM_EFORMAT, "the token \"%.60s\" (id %d) is %s", text, id,
                           n ? "not spelled in the byte-level alphabet" : "empty");
        if (n >= 0 && added && voc_find(voc, l->scratch, (size_t)n) >= 0)
            return km_fail(err, KM_EFORMAT, "the added token \"%.60s\" (id %d) is in the vocabulary under another id",
                           text, id);
        /* Hugging Face decodes an added token by the alphabet if all of its characters spell bytes, else literally. */
        if (!(n < 0 ? voc_put(voc, id, text, len) : voc_put(voc, id, l->scratch, (size_t)n)))
            return km_fail(err, KM_EFORMAT, "the token \"%.60s\" occurs twice in the vocabulary", text);
    }
    return 0;
}

static int load_added(struct tok *t, const cJSON *added, struct km_err *err)
{
    const cJSON *v;
    cJSON_ArrayForEach(v, added)
    {
        const char *text = get(v, "content")->valuestring;
        struct added_tok *a = &t->added.v[t->added.n];
        *a = (struct added_tok){km_strdup(text), strlen(text), read_id(get(v, "id"), t->voc.total),
                                cJSON_IsTrue(get(v, "special"))};
        if (!a->text)
            return km_fail(err, KM_ENOMEM, "out of memory for the added tokens");
        t->added.n++;
        t->special[a->id] = a->special;
    }
    const char *twice = added_sort(&t->added);
    return twice ? km_fail(err, KM_EFORMAT, "the added token \"%.60s\" occurs twice", twice) : 0;
}

static int load_tokens(struct loading *l, const cJSON *vocab, const cJSON *added, struct km_err *err)
{
    struct tok *t = l->t;
    int rc;
    if (!cJSON_IsObject(vocab))
        return km_fail(err, KM_EFORMAT, "\"vocab\" must be a JSON object");
    int32_t n = cJSON_GetArraySize(vocab), beyond = 0;
    if ((rc = check_added(added, n, &beyond, err)))
        return rc;
    if (n > MAX_TOKENS || beyond > MAX_TOKENS)
        return km_fail(err, KM_ELIMIT, "the vocabulary has %d tokens and %d added ones; at most %d are read", n, beyond,
                       MAX_TOKENS);
    int32_t total = n + beyond;
    size_t size = 0;
    l->by_id = km_calloc((size_t)total, sizeof *l->by_id);
    t->special = km_calloc((size_t)total, 1);
    if (!l->by_id || !t->special)
        return km_fail(err, KM_ENOMEM, "out of memory for %d tokens", total);
    if (!(rc = index_ids(l, vocab, n, added, total, &size, err)) && !(rc = voc_open(&t->voc, n, total, size, err)) &&
        !(rc = added_open(&t->added, cJSON_GetArraySize(added), err)) && !(rc = load_vocabulary(l, err)))
        rc = load_added(t, added, err);
    return rc;
}

/* The two tokens of a merge: ["a", "b"], or "a b" in files of older versions. False if m is neither. */
static bool merge_parts(const cJSON *m, const char **a, size_t *na, const char **b, size_t *nb)
{
    if (cJSON_IsString(m)) {
        const char *space = strchr(m->valuestring, ' ');
        if (!space || strchr(space + 1, ' '))
            return false;
        *a = m->valuestring;
        *na = (size_t)(space - *a);
        *b = space + 1;
    } else {
        const cJSON *first = cJSON_IsArray(m) ? m->child : NULL, *second = first ? first->next : NULL;
        if (!cJSON_IsString(first) || !cJSON_IsString(second) || second->next)
            return false;
        *a = first->valuestring;
        *na = strlen(*a);
        *b = second->valuestring;
    }
    *nb = strlen(*b);
    return *na && *nb;
}

static int load_merges(struct loading *l, const cJSON *merges, struct km_err *err)
{
    struct tok *t = l->t;
    if (!cJSON_IsArray(merges))
        return km_fail(err, KM_EFORMAT, "\"merges\" must be an array");
    int n = cJSON_GetArraySize(merges), rank = 0, rc;
    if (n > MAX_TOKENS)
        return km_fail(err, KM_ELIMIT, "there are %d merges; at most %d are read", n, MAX_TOKENS);
    if ((rc = bpe_open(&t->bpe, &t->voc, n, err)))
        return rc;
    const cJSON *m;
    cJSON_ArrayForEach(m, merges)
    {
        const char *a, *b;
        size_t na, nb;
        if (!merge_parts(m, &a, &na, &b, &nb))
            return km_fail(err, KM_EFORMAT, "merge %d is not a pair of tokens", rank);
        if ((rc = reserve_scratch(l, na + nb, err)))
            return rc;
        int64_t la = alphabet_bytes(&l->alphabet, a, na, l->scratch);
        int64_t lb = la < 0 ? -1 : alphabet_bytes(&l->alphabet, b, nb, l->scratch + la);
        int32_t left = -1, right = -1, made = -1;
        if (lb >= 0) {
            left = voc_find(&t->voc, l->scratch, (size_t)la);
            right = voc_find(&t->voc, l->scratch + la, (size_t)lb);
            made = voc_find(&t->voc, l->scratch, (size_t)(la + lb));
        }
        const char *unknown = left < 0 ? "the first" : right < 0 ? "the second" : made < 0 ? "the merged token" : NULL;
        if (unknown)
            return km_fail(err, KM_EFORMAT, "merge %d joins \"%.60s\" and \"%.60s\", but %s is not in the vocabulary",
                           rank, a, b, unknown);
        if (!bpe_put(&t->bpe, rank, left, right, made))
            return km_fail(err, KM_EFORMAT, "merge %d joins \"%.60s\" and \"%.60s\", as an earlier merge does", rank, a,
                           b);
        rank++;
    }
    return 0;
}

int tok_load_file(struct tok *t, const char *path, struct km_err *err)
{
    cJSON *root = NULL;
    struct loading l = {.t = t};
    int rc = km_json_file(path, MAX_FILE, &root, err);
    if (rc)
        return rc;
    alphabet_init(&l.alphabet);
    if (!(t->table = uni_table()))
        rc = km_fail(err, KM_ENOMEM, "out of memory for the classes of code points");
    else if (!(rc = check_settings(root, err)) &&
             !(rc = load_tokens(&l, get(get(root, "model"), "vocab"), get(root, "added_tokens"), err)))
        rc = load_merges(&l, get(get(root, "model"), "merges"), err);
    if (rc)
        km_context(err, "%s", path);
    km_free(l.by_id);
    km_free(l.scratch);
    cJSON_Delete(root);
    return rc;
}

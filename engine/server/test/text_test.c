/* The text of a choice. It does not depend on token boundaries, and text that a stop string may cut is not shown. */
#include "base/test/test.h"

#include "base/random.h"
#include "engine/server/text.h"

#include <stdlib.h>
#include <string.h>

static uint64_t random_state = 1;

static unsigned random_below(unsigned n)
{
    return km_random_below(&random_state, n);
}

/* The reference: replaces bytes that are not UTF-8 by U+FFFD, in the whole text at once. */
static void replace_invalid(const char *s, size_t n, struct km_buf *out)
{
    for (size_t i = 0; i < n;) {
        int need, len = km_utf8_len(s + i, n - i, &need);
        if (len) {
            km_buf_put(out, s + i, (size_t)len);
            i += (size_t)len;
            continue;
        }
        km_buf_puts(out, "\xef\xbf\xbd");
        size_t k = 1; /* the longest prefix of a character */
        for (size_t m = 2; m <= 3 && i + m <= n; m++) {
            int more;
            km_utf8_len(s + i, m, &more);
            if (!more)
                break;
            k = m;
        }
        i += need ? n - i : k;
    }
}

/* The reference: ends the text at the first stop string that is complete. */
static void cut_at_stop(struct km_buf *b, const char *const *stops, int n, bool include)
{
    for (size_t end = 1; end <= b->len; end++) {
        size_t longest = 0;
        for (int k = 0; k < n; k++) {
            size_t len = strlen(stops[k]);
            if (len <= end && len > longest && !memcmp(b->data + end - len, stops[k], len))
                longest = len;
        }
        if (longest) {
            b->len = include ? end : end - longest;
            b->data[b->len] = 0;
            return;
        }
    }
}

/* Pushes the bytes in random pieces and compares the text with the reference. */
static void check_random_pieces(const char *bytes, size_t n, const char *const *stops, int n_stops, bool include)
{
    struct km_buf want = {0}, got = {0};
    km_buf_puts(&want, "");
    km_buf_puts(&got, "");
    replace_invalid(bytes, n, &want);
    cut_at_stop(&want, stops, n_stops, include);
    struct txt_stops st;
    assert_int_equal(txt_stops_init(&st, stops, n_stops, include, NULL), 0);
    struct txt t;
    txt_init(&t, &st);
    bool goes_on = true;
    for (size_t at = 0; goes_on && at < n;) {
        size_t k = 1 + random_below(5);
        if (k > n - at)
            k = n - at;
        goes_on = txt_push(&t, bytes + at, k, true);
        at += k;
        size_t from, len;
        txt_show(&t, &from, &len);
        km_buf_put(&got, km_buf_str(&t.text) + from, len);
        /* What is shown is a prefix of the final text, and consists of whole characters. */
        assert_true(got.len <= want.len);
        assert_memory_equal(got.data, want.data, got.len);
        for (size_t i = 0; i < len;) {
            int u = km_utf8_len(t.text.data + from + i, len - i, NULL);
            assert_true(u > 0 || include || n_stops);
            i += u > 0 ? (size_t)u : 1;
        }
    }
    txt_end(&t);
    size_t from, len;
    txt_show(&t, &from, &len);
    km_buf_put(&got, km_buf_str(&t.text) + from, len);
    assert_int_equal(got.len, want.len);
    assert_memory_equal(got.data, want.data, got.len);
    assert_int_equal(t.text.len, want.len);
    txt_free(&t);
    txt_stops_free(&st);
    km_buf_free(&want);
    km_buf_free(&got);
}

static void token_boundaries_do_not_change_the_text(void **state)
{
    (void)state;
    static const char *const pieces[] = {"a",    "b",    "ab",   "aab",         "\n",   "é",    "世",
                                         "🌍",    "\xf0", "\x9f", "\xe4\xb8",    "\xff", "\xc0", "\xed\xa0\x80",
                                         "STOP", "ST",   "世界", "\xef\xbf\xbd"};
    static const char *const stops[] = {"aab", "ab", "STOP", "世界", "é", "aabaaab", "\n\n", "b", "OPST", "🌍a"};
    for (int i = 0; i < 20000; i++) {
        struct km_buf b = {0};
        km_buf_puts(&b, "");
        for (unsigned k = random_below(14); k > 0; k--)
            km_buf_puts(&b, pieces[random_below(sizeof pieces / sizeof *pieces)]);
        const char *use[4];
        int n = (int)random_below(5);
        for (int k = 0; k < n; k++)
            use[k] = stops[random_below(sizeof stops / sizeof *stops)];
        check_random_pieces(b.data, b.len, use, n, random_below(4) == 0);
        km_buf_free(&b);
    }
}

static void push_and_expect(struct txt *t, const char *push, const char *want)
{
    txt_push(t, push, strlen(push), true);
    size_t from, n;
    txt_show(t, &from, &n);
    assert_int_equal(n, strlen(want));
    assert_memory_equal(km_buf_str(&t->text) + from, want, n);
}

static void no_more_is_held_back_than_needed(void **state)
{
    (void)state;
    const char *stops[] = {"STOP", "TOX"};
    struct txt_stops st;
    assert_int_equal(txt_stops_init(&st, stops, 2, false, NULL), 0);
    struct txt t;
    txt_init(&t, &st);
    push_and_expect(&t, "abcS", "abc");
    push_and_expect(&t, "T", "");
    push_and_expect(&t, "O", "");
    push_and_expect(&t, "x", "STOx"); /* no longer a prefix of a stop string */
    push_and_expect(&t, "ySTO", "y");
    push_and_expect(&t, "Q", "STOQ");
    push_and_expect(&t, "zSSTOX", "zSS"); /* TOX begins inside STO */
    assert_int_equal(t.stopped_by, 1);
    txt_free(&t);

    txt_init(&t, &st);
    push_and_expect(&t, "\xe4\xb8", ""); /* two thirds of a character */
    push_and_expect(&t, "\x96!", "世!");
    push_and_expect(&t, "\xf0\x9f", "");
    txt_end(&t);
    push_and_expect(&t, "", "\xef\xbf\xbd");
    txt_free(&t);

    /* match_stops false: stop strings are neither found nor held back. */
    txt_init(&t, &st);
    assert_true(txt_push(&t, "STOP ST", 7, false));
    push_and_expect(&t, "OP", "STOP STOP");
    assert_int_equal(t.stopped_by, -1);
    txt_free(&t);
    txt_stops_free(&st);
}

static void matching_takes_linear_time(void **state)
{
    (void)state;
    /* A text of 100,000 a's and a stop string of 20,000 a's and a b. A matcher that began again at each byte would
     * take seconds. */
    char *stop = malloc(20002), *text = malloc(100000);
    memset(stop, 'a', 20000);
    memcpy(stop + 20000, "b", 2);
    memset(text, 'a', 100000);
    const char *stops[] = {stop};
    struct txt_stops st;
    assert_int_equal(txt_stops_init(&st, stops, 1, false, NULL), 0);
    struct txt t;
    txt_init(&t, &st);
    size_t from, n, total = 0;
    for (int i = 0; i < 100000; i += 10) {
        assert_true(txt_push(&t, text + i, 10, true));
        txt_show(&t, &from, &n);
        total += n;
    }
    assert_int_equal(total, 80000);
    assert_false(txt_push(&t, "b", 1, true));
    assert_int_equal(t.text.len, 80000);
    txt_free(&t);
    txt_stops_free(&st);
    free(stop);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(token_boundaries_do_not_change_the_text),
        cmocka_unit_test(no_more_is_held_back_than_needed),
        cmocka_unit_test(matching_takes_linear_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

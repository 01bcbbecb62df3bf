/* The request parser. It must refuse a request whose framing two parsers could understand in two ways, and packet
 * boundaries must not change the result. */
#include "base/test/test.h"

#include "engine/server/http_parse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Pieces of requests. HOST is the header that HTTP/1.1 requires, POST a request line with it, and END the empty line
 * after the last header. */
#define HOST "Host: h\r\n"
#define END "\r\n"
#define POST "POST /x HTTP/1.1\r\n" HOST

/* Feeds s[n] in pieces of `step` bytes. Returns 200 for a complete request, 0 if more bytes are needed, else the status
 * of the error. Sets *consumed to the number of bytes consumed. */
static int feed(const char *s, size_t n, size_t step, struct hp *p, size_t *consumed)
{
    size_t at = 0;
    for (;;) {
        size_t k = n - at < step ? n - at : step, used;
        enum hp_event ev = hp_feed(p, s + at, k, &used);
        at += used;
        *consumed = at;
        if (ev == HP_DONE)
            return 200;
        if (ev == HP_BAD)
            return p->status;
        if (ev == HP_MORE && at == n)
            return 0;
    }
}

static void framing_is_strict(void **state)
{
    (void)state;
    static const struct {
        const char *s;
        int status; /* 0: more bytes are needed */
    } rows[] = {
        {"GET / HTTP/1.1\r\n" HOST END, 200},
        {"GET /a?b=c&d HTTP/1.1\r\n" HOST END, 200},
        {"\r\nGET / HTTP/1.1\r\n" HOST END, 200},
        {"GET / HTTP/1.0\r\n" END, 200},
        {"GET http://h/a HTTP/1.1\r\n" HOST END, 200},
        {"GET http://h HTTP/1.1\r\n" HOST END, 200},
        {"GET http://h?q HTTP/1.1\r\n" HOST END, 200},
        {POST "Content-Length: 3\r\n" END "abc", 200},
        {POST "Content-Length: 003\r\n" END "abc", 200},
        {POST "Content-Length: 0\r\n" END, 200},
        {POST "content-length:3\r\n" END "abc", 200},
        {POST "Content-Length: \t 3 \t\r\n" END "abc", 200},
        {POST "Transfer-Encoding: chunked\r\n" END "3\r\nabc\r\n0\r\n\r\n", 200},
        {POST "Transfer-Encoding: CHUNKED\r\n" END "A\r\n0123456789\r\n0\r\n\r\n", 200},
        {POST "Transfer-Encoding: chunked\r\n" END "3;ext=1\r\nabc\r\n0;x\r\nT: v\r\n\r\n", 200},
        {POST "Transfer-Encoding: chunked\r\n" END "0003\r\nabc\r\n000\r\n\r\n", 200},
        {POST "X: \xc3\xa9\xff\r\nContent-Length: 0\r\n" END, 200},
        {POST "Content-Length: 4\r\n" END "abc", 0},
        {"GET / HTTP/1.1\r\n" HOST, 0},
        {"GET", 0},
        /* Request lines. */
        {"GET / HTTP/1.1\n" HOST END, 400},
        {"GET  / HTTP/1.1\r\n" HOST END, 400},
        {"GET / HTTP/1.1 \r\n" HOST END, 400},
        {"GET /\r\n" HOST END, 400},
        {"GET / HTTP/1.1\r\r\n" HOST END, 400},
        {" GET / HTTP/1.1\r\n" HOST END, 400},
        {"GET\t/ HTTP/1.1\r\n" HOST END, 400},
        {"GET /a b HTTP/1.1\r\n" HOST END, 400},
        {"GET /\x01 HTTP/1.1\r\n" HOST END, 400},
        {"GET /\x80 HTTP/1.1\r\n" HOST END, 400},
        {"GET /a#b HTTP/1.1\r\n" HOST END, 400},
        {"GET a HTTP/1.1\r\n" HOST END, 400},
        {"GET * HTTP/1.1\r\n" HOST END, 400},
        {"GET http:///a HTTP/1.1\r\n" HOST END, 400},
        {"GET / http/1.1\r\n" HOST END, 400},
        {"GET / HTTP/1.1x\r\n" HOST END, 400},
        {"GET / HTTP/11\r\n" HOST END, 400},
        {"GET / HTTP/2.0\r\n" HOST END, 505},
        {"GET / HTTP/0.9\r\n" HOST END, 505},
        {"G@T / HTTP/1.1\r\n" HOST END, 400},
        {"\x16\x03\x01\x02", 400},
        {"\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n" HOST END, 400},
        /* Headers. */
        {"GET / HTTP/1.1\r\n" END, 400},
        {"GET / HTTP/1.1\r\n" HOST HOST END, 400},
        {"GET / HTTP/1.1\r\nHost: a b\r\n" END, 400},
        {"GET / HTTP/1.1\r\nHost: a/b\r\n" END, 400},
        {POST "X : 1\r\n" END, 400},
        {POST " X: 1\r\n" END, 400},
        {POST "X: 1\r\n folded\r\n" END, 400},
        {POST "X: 1\r\n\tfolded\r\n" END, 400},
        {POST "X\r\n" END, 400},
        {POST ": v\r\n" END, 400},
        {POST "X: a\rb\r\n" END, 400},
        {POST "X: a\nY: b\r\n" END, 400},
        {POST "X: a\x01\r\n" END, 400},
        {POST "X: a\x7f\r\n" END, 400},
        {POST "X\xc3: a\r\n" END, 400},
        {POST "X(: a\r\n" END, 400},
        {POST "\n", 400},
        /* Lengths. */
        {POST "Content-Length: 3\r\nContent-Length: 3\r\n" END "abc", 400},
        {POST "Content-Length: 3\r\nContent-Length: 4\r\n" END "abcd", 400},
        {POST "Content-Length: 3, 3\r\n" END "abc", 400},
        {POST "Content-Length: +3\r\n" END "abc", 400},
        {POST "Content-Length: -3\r\n" END "abc", 400},
        {POST "Content-Length: 0x3\r\n" END "abc", 400},
        {POST "Content-Length: 3 3\r\n" END "abc", 400},
        {POST "Content-Length: 3.0\r\n" END "abc", 400},
        {POST "Content-Length: 1e1\r\n" END "abc", 400},
        {POST "Content-Length: \r\n" END, 400},
        {POST "Content-Length: 3\x0b\r\n" END "abc", 400},
        {POST "Content-Length: 101\r\n" END, 413},
        {POST "Content-Length: 9223372036854775808\r\n" END, 413},
        {POST "Content-Length: 18446744073709551616\r\n" END, 413},
        {POST "Content-Length: 18446744073709551619\r\n" END "abc", 413},
        {POST "Content-Length: 99999999999999999999999999\r\n" END, 413},
        /* Transfer codings. */
        {POST "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n" END "3\r\nabc\r\n0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n" END "abc", 400},
        {POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" END "0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked, chunked\r\n" END "0\r\n\r\n", 400},
        {POST "Transfer-Encoding: gzip, chunked\r\n" END "0\r\n\r\n", 400},
        {POST "Transfer-Encoding: identity\r\n" END, 400},
        {POST "Transfer-Encoding: xchunked\r\n" END, 400},
        {POST "Transfer-Encoding: \"chunked\"\r\n" END, 400},
        {POST "Transfer-Encoding:\r\n" END, 400},
        {POST "Transfer-Encoding : chunked\r\n" END, 400},
        {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n" END "0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\n" END "0x3\r\nabc\r\n0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\n" END "+3\r\nabc\r\n0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\n" END "-3\r\nabc\r\n0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\n" END " 3\r\nabc\r\n0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\n" END "3 \r\nabc\r\n0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\n" END "0_3\r\nabc\r\n0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\n" END "3\nabc\r\n0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\n" END "3\r\nabc\n0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\n" END "3\r\nabcd\r\n0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\n" END "\r\nabc\r\n0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\n" END "g\r\nabc\r\n0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\n" END "3;\x01\r\nabc\r\n0\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\n" END "3\r\nabc\r\n0\r\nbad trailer\r\n\r\n", 400},
        {POST "Transfer-Encoding: chunked\r\n" END "65\r\n", 413},
        {POST "Transfer-Encoding: chunked\r\n" END "FFFFFFFFFFFFFFFF\r\n", 413},
        {POST "Transfer-Encoding: chunked\r\n" END "10000000000000003\r\nabc\r\n", 413},
        {POST "Transfer-Encoding: chunked\r\n" END "3\r\nabc\r\n0\r\n", 0},
        {POST "Expect: tea\r\nContent-Length: 0\r\n" END, 417},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t step = 1; step < 200; step = step == 1 ? 3 : step * 7) {
            struct hp p;
            hp_init(&p, 100);
            size_t consumed;
            int got = feed(rows[i].s, strlen(rows[i].s), step, &p, &consumed);
            if (got != rows[i].status)
                fail_msg("row %zu, step %zu: %d instead of %d for %.120s", i, step, got, rows[i].status, rows[i].s);
            hp_free(&p);
        }
}

static void nul_bytes_are_refused(void **state)
{
    (void)state;
    static const char *const s[] = {"GET /\0 HTTP/1.1\r\n" HOST END, "GET / HTTP/1.1\r\nHost: h\0\r\n" END};
    for (int i = 0; i < 2; i++) {
        struct hp p;
        hp_init(&p, 100);
        size_t consumed;
        assert_int_equal(feed(s[i], 30, 30, &p, &consumed), 400);
        hp_free(&p);
    }
}

static void packet_boundaries_do_not_matter(void **state)
{
    (void)state;
    const char *one =
        "POST /v1/x?a=1&flag=true&no=0 HTTP/1.1\r\nHost: h:80\r\nX-A: b c \r\nTransfer-Encoding: chunked\r\n"
        "Connection: keep-alive, x\r\n\r\n5\r\nhello\r\n6;e\r\n world\r\n0\r\nT: x\r\n\r\n";
    char all[4096];
    int n = snprintf(all, sizeof all, "%s%s%s", one, "GET /2 HTTP/1.0\r\n\r\n",
                     "POST /3 HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi");
    for (size_t step = 1; step <= (size_t)n; step++) {
        struct hp p;
        hp_init(&p, 100);
        size_t at = 0, consumed;
        assert_int_equal(feed(all, (size_t)n, step, &p, &consumed), 200);
        assert_string_equal(p.method, "POST");
        assert_string_equal(p.path, "/v1/x");
        assert_string_equal(p.query, "a=1&flag=true&no=0");
        assert_true(hp_query_flag(&p, "a") && hp_query_flag(&p, "flag"));
        assert_false(hp_query_flag(&p, "no") || hp_query_flag(&p, "fla") || hp_query_flag(&p, "b"));
        assert_string_equal(hp_header(&p, "x-a"), "b c");
        assert_null(hp_header(&p, "t"));
        assert_int_equal(p.body.len, 11);
        assert_memory_equal(p.body.data, "hello world", 11);
        assert_true(p.keep_alive);
        assert_int_equal(consumed, strlen(one));
        at += consumed;
        hp_reset(&p);
        assert_false(hp_started(&p));
        assert_int_equal(feed(all + at, (size_t)n - at, step, &p, &consumed), 200);
        assert_string_equal(p.path, "/2");
        assert_false(p.keep_alive);
        at += consumed;
        hp_reset(&p);
        assert_int_equal(feed(all + at, (size_t)n - at, step, &p, &consumed), 200);
        assert_string_equal(p.path, "/3");
        assert_string_equal(km_buf_str(&p.body), "hi");
        assert_false(p.keep_alive);
        hp_free(&p);
    }
}

/* Feeds `start` and then n times `piece`. Returns the status; *held: the memory that the parser holds, bytes. */
static int feed_endless(const char *start, const char *piece, int n, size_t *held)
{
    struct hp p;
    hp_init(&p, 1000);
    size_t consumed;
    int got = feed(start, strlen(start), 1000, &p, &consumed);
    for (int i = 0; !got && i < n; i++)
        got = feed(piece, strlen(piece), 1000, &p, &consumed);
    *held = p.head.cap + p.line.cap + p.body.cap;
    hp_free(&p);
    return got;
}

static void endless_requests_end_early(void **state)
{
    (void)state;
    size_t held;
    assert_int_equal(feed_endless("GET / HTTP/1.1\r\n" HOST, "A: b\r\n", 98, &held), 0);
    assert_int_equal(feed_endless("GET / HTTP/1.1\r\n" HOST, "A: b\r\n", 10000, &held), 431);
    assert_int_equal(feed_endless("GET / HTTP/1.1\r\n" HOST "X: ", "aaaaaaaaaaaaaaaa", 10000, &held), 431);
    assert_true(held < 2 * HP_MAX_HEAD);
    assert_int_equal(feed_endless("GET /", "aaaaaaaaaaaaaaaa", 10000, &held), 414);
    assert_true(held < 4 * HP_MAX_LINE);
    assert_int_equal(feed_endless(POST "Transfer-Encoding: chunked\r\n\r\n", "8\r\n12345678\r\n", 10000, &held), 413);
    assert_int_equal(feed_endless(POST "Transfer-Encoding: chunked\r\n\r\n0\r\n", "T: v\r\n", 10000, &held), 431);
    assert_int_equal(feed_endless(POST "Transfer-Encoding: chunked\r\n\r\n1;", "x", 10000, &held), 400);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(framing_is_strict),
        cmocka_unit_test(nul_bytes_are_refused),
        cmocka_unit_test(packet_boundaries_do_not_matter),
        cmocka_unit_test(endless_requests_end_early),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

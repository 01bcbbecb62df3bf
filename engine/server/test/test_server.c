#include "base/test/test.h"

#include "engine/server/test/test_server.h"

#include "base/clock.h"
#include "engine/server/test/fake_engine.h"
#include "engine/server/test/fake_tokenizer.h"

#include <unistd.h>

struct test_server server;

static void *serve(void *arg)
{
    (void)arg;
    server.rc = srv_run(server.s, server.signals, NULL);
    return NULL;
}

void server_open(struct srv_opts o, const struct tok *t)
{
    struct km_err err = {0};
    o.port = 0;
    if (srv_open(&server.s, &o, fake_eng(), t, &err))
        fail_msg("%s", err.msg);
    server.port = srv_port(server.s);
}

void server_run(bool signals)
{
    server.signals = signals;
    pthread_create(&server.thread, NULL, serve, NULL);
}

void server_start_with(struct srv_opts o, const struct tok *t, bool signals)
{
    server_open(o, t);
    server_run(signals);
}

void server_start(void)
{
    server_start_with(srv_defaults(), fake_tok, false);
}

void server_stop(void)
{
    srv_stop(server.s);
    pthread_join(server.thread, NULL);
    assert_int_equal(server.rc, 0);
    srv_free(server.s);
    server.s = NULL;
}

int server_setup(void **state)
{
    (void)state;
    fake_reset();
    return 0;
}

void wait_until_equal(atomic_int *v, int want)
{
    int64_t until = km_now_ns() + 5000000000;
    while (*v != want && km_now_ns() < until)
        usleep(1000);
    assert_int_equal(*v, want);
}

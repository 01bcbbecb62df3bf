#include "base/test/test.h"

#include "engine/server/test/test_server.h"

#include "base/clock.h"
#include "engine/server/test/fake_engine.h"
#include "engine/server/test/fake_tokenizer.h"

#include <unistd.h>

struct stage up;

static void *serve(void *arg)
{
    (void)arg;
    up.rc = srv_run(up.s, up.signals, NULL);
    return NULL;
}

void start_with(struct srv_opts o, const struct tok *t, bool signals)
{
    struct km_err err = {0};
    o.port = 0;
    if (srv_open(&up.s, &o, fake_eng(), t, &err))
        fail_msg("%s", err.msg);
    up.port = srv_port(up.s);
    up.signals = signals;
    pthread_create(&up.thread, NULL, serve, NULL);
}

void start(void)
{
    start_with(srv_defaults(), fake_tok, false);
}

void stop(void)
{
    srv_stop(up.s);
    pthread_join(up.thread, NULL);
    assert_int_equal(up.rc, 0);
    srv_free(up.s);
    up.s = NULL;
}

int each(void **state)
{
    (void)state;
    fake_reset();
    return 0;
}

void wait_for(atomic_int *v, int want)
{
    int64_t until = km_now_ns() + 5000000000;
    while (*v != want && km_now_ns() < until)
        usleep(1000);
    assert_int_equal(*v, want);
}

/* A server on a thread of its own for the tests, over the scripted engine and the byte tokenizer. One at a time. */
#ifndef SRV_TEST_SERVER_H
#define SRV_TEST_SERVER_H

#include "engine/server/server.h"

#include <pthread.h>
#include <stdatomic.h>

#define MODEL "\"model\":\"fake-1\""
#define COMP "/v1/completions"
#define CHAT "/v1/chat/completions"

struct test_server {
    struct srv *s;
    pthread_t thread;
    int port;
    bool signals;
    int rc;
};
extern struct test_server server;

void server_start(void); /* with the defaults */
void server_start_with(struct srv_opts o, const struct tok *t, bool signals);
void server_stop(void);
int server_setup(void **state);                   /* before each test */
void wait_until_equal(atomic_int *v, int want);   /* at most 5 s */

#endif

/* One server on a thread of its own, with the fake engine and the fake tokenizer, for tests over real sockets. */
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
    bool signals; /* the server handles SIGTERM and SIGINT */
    int rc;       /* result of srv_run */
};
extern struct test_server server;

int server_setup(void **state); /* cmocka's set-up of each test: resets the fake engine */
void server_start(void);        /* default options, with the fake tokenizer */
void server_start_with(struct srv_opts o, const struct tok *t, bool signals); /* server_open and server_run */
void server_open(struct srv_opts o, const struct tok *t); /* clients can connect and send, but get no answer */
void server_run(bool signals);
void server_stop(void);                         /* stops and frees the server; srv_run must return 0 */
void wait_until_equal(atomic_int *v, int want); /* fails after 5 s */

#endif

/* A blocking HTTP client for tests. It sends bytes unchanged, so that tests can send bad requests, and it checks the
 * framing of answers. */
#ifndef SRV_TEST_CLIENT_H
#define SRV_TEST_CLIENT_H

#include "base/buf.h"
#include "base/json.h"

struct answer {
    int status;         /* 0: the connection ended without an answer */
    struct km_buf head; /* status line and headers, each ending in a newline */
    struct km_buf body; /* without the chunked coding */
    bool closed;        /* the answer has "Connection: close" */
};

int cl_connect(int port); /* a socket; -1: refused */
void cl_send(int fd, const char *s, size_t n);
/* Sends a request on a connection of its own and returns the socket without reading. body NULL: GET. */
int cl_start(int port, const char *path, const char *body);
/* Reads the next answer; false at the end of the connection. Bytes after the answer are kept in rest. */
bool cl_read(int fd, struct km_buf *rest, struct answer *a);
void cl_free(struct answer *a);
/* Sends a request on a connection of its own and reads the answer. */
void cl_request(int port, const char *path, const char *body, struct answer *a);
/* Sends a request like cl_request. The answer must have this status and be JSON, and an error must have OpenAI's four
 * keys. Returns the JSON (cJSON_Delete). */
cJSON *cl_json(int port, const char *path, const char *body, int status);
void cl_expect(int port, const char *path, const char *body, int status); /* cl_json without its result */
cJSON *cl_choice(const cJSON *v, int i);                                  /* v.choices[i] */

/* A streamed answer: the joined text of each choice, and the number of events of each kind. */
struct streamed {
    struct km_buf text[8];
    int events, roles, done, usages, errors;
    char finish[8][16];
    int completion_tokens, prompt_tokens, cached;
    char error[200]; /* the message of the last error event */
};
void cl_stream(int port, const char *path, const char *body, struct streamed *s);
void cl_stream_parse(const struct km_buf *body, struct streamed *s);
void cl_stream_free(struct streamed *s);
double cl_metric(int port, const char *name); /* the first sample of this name; -1: none */

#endif

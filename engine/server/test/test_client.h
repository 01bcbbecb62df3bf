/* A blocking HTTP client that sends exactly the bytes it is told to, and reads answers apart. */
#ifndef SRV_TEST_CLIENT_H
#define SRV_TEST_CLIENT_H

#include "base/buf.h"
#include "base/json.h"

struct answer {
    int status;          /* 0: the connection ended without one */
    struct km_buf head, body; /* body: dechunked */
    bool closed;         /* the server closed after it */
};

int cl_connect(int port);
void cl_send(int fd, const char *s, size_t n);
/* The next answer; false at the connection's end. The connection's unread bytes are kept in rest. */
bool cl_read(int fd, struct km_buf *rest, struct answer *a);
void cl_free(struct answer *a);
/* One request on its own connection. body NULL: GET. */
void cl_request(int port, const char *path, const char *body, struct answer *a);
/* The same with an answer that must be JSON with this status. */
cJSON *cl_json(int port, const char *path, const char *body, int status);

/* A streamed answer taken apart: texts by choice joined, and what was seen. */
struct streamed {
    struct km_buf text[8];
    int events, roles, done, usages, errors;
    char finish[8][16];
    int completion_tokens, prompt_tokens, cached;
    char error[200];
};
void cl_stream(int port, const char *path, const char *body, struct streamed *s);
void cl_stream_parse(const struct km_buf *body, struct streamed *s);
void cl_stream_free(struct streamed *s);
double cl_metric(int port, const char *name); /* the first sample with this name */

#endif

/* kvmark serve. */
#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/cmd.h"
#include "harness/cli/serve.h"

#include <stdio.h>

static struct serve_opts shown; /* for help only: the table needs somewhere to point */

static int flags(struct km_flag *out, int max)
{
    shown = serve_defaults();
    return serve_flags(&shown, out, max);
}

static void announce(void *arg, int port)
{
    const struct serve_opts *o = arg;
    km_log(KM_LOG_INFO, "listening on http://%s:%d", o->host, port);
}

static int run(int argc, char **argv)
{
    struct serve_opts o = serve_defaults();
    struct serve_facts facts;
    struct km_flag table[64];
    struct km_strs pos = {0};
    struct km_err err = {0};
    bool help;
    int n = serve_flags(&o, table, 64);
    int rc = km_args_parse(table, n, argc, argv, &pos, &help, &err);
    if (!rc && pos.n && !o.model && pos.n == 1) /* `kvmark serve DIR`, as vLLM takes it */
        o.model = pos.v[0];
    else if (!rc && pos.n)
        rc = km_fail(&err, KM_EINVAL, "serve takes one model; \"%s\" is left over", pos.v[pos.n - 1]);
    if (!rc)
        rc = serve_check(&o, &facts, &err);
    km_free(pos.v);
    if (rc) {
        km_log(KM_LOG_ERROR, "%s", err.msg);
        return rc == KM_EDEVICE ? CMD_FAILED : CMD_USAGE;
    }
    rc = serve_run(&o, announce, &o, &err);
    if (rc)
        km_log(KM_LOG_ERROR, "%s", err.msg);
    return rc ? CMD_FAILED : CMD_OK;
}

const struct cmd cmd_serve = {
    .name = "serve",
    .usage = "--model DIR|PRESET [FLAGS]",
    .summary = "Serve a Qwen3 model over an OpenAI-compatible HTTP API",
    .text = "Flags carry vLLM's names where vLLM has one. The server binds 127.0.0.1 unless --host says otherwise and ends\n"
            "cleanly on SIGTERM: no new requests, running streams get ten seconds.",
    .run = run,
    .flags = flags,
};

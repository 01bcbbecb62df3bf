/* kvmark serve: an engine behind an OpenAI-compatible HTTP API. */
#include "base/log.h"
#include "harness/cli/cmd.h"
#include "harness/cli/serve.h"

static int groups(void *options, struct km_option_group *out)
{
    return serve_option_groups(options, out);
}

static void log_address(void *arg, const struct serve_ready *r)
{
    const struct serve_opts *o = arg;
    km_log(KM_LOG_INFO, "listening on http://%s:%d%s", o->server.host, r->port,
           r->cache_complete ? "" : " (the cache layer is still taking its memory, in the background)");
}

static int run(const struct cmd_call *call)
{
    struct km_err err;
    struct serve_opts *o = call->options;
    struct serve_facts facts;
    int rc = 0;
    if (call->args.n == 1 && !o->model) /* `kvmark serve DIR`, as vLLM accepts it */
        o->model = call->args.v[0];
    else if (call->args.n)
        rc = km_fail(&err, KM_EINVAL, "serve takes one model; \"%s\" is left over", call->args.v[call->args.n - 1]);
    if (!rc)
        rc = serve_check(o, &facts, &err);
    if (rc)
        return cmd_error(&err, rc == KM_EDEVICE ? CMD_FAILED : CMD_USAGE);
    return serve_run(o, 0, log_address, o, &err) ? cmd_error(&err, CMD_FAILED) : CMD_OK;
}

const struct cmd cmd_serve = {
    .name = "serve",
    .usage = "--model DIR|PRESET [OPTIONS]",
    .summary = "Serve a Qwen3 model over an OpenAI-compatible HTTP API",
    .text = "Options have the names that vLLM gives them, where vLLM has the option. The server listens on 127.0.0.1 "
            "unless --host says otherwise. SIGTERM and SIGINT end it: it refuses new requests and gives running "
            "streams ten seconds to finish.\n\n"
            "The cache layer takes its memory in the background, so that serving starts at once. kvmark info --plan "
            "prints how much it will be.",
    .options_size = sizeof(struct serve_opts),
    .groups = groups,
    .run = run,
};

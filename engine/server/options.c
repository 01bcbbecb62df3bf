/* The server's options: one row per field of `struct srv_opts`. */
#include "engine/server/server.h"

static const struct km_option rows[] = {
    {.name = "host",
     KM_FIELD(struct srv_opts, host),
     .arg = "ADDR",
     .fallback = "127.0.0.1",
     .help = "address to listen on"},
    {.name = "port",
     KM_FIELD(struct srv_opts, port),
     .arg = "N",
     .fallback = "8000",
     .lo = 0,
     .hi = 65535,
     .help = "port to listen on; 0: any free port"},
    {.name = "served-model-name",
     KM_FIELD(struct srv_opts, served_name),
     .arg = "NAME",
     .help = "name of the model in the API (default: the name of its folder or preset)"},
    {.name = "api-key",
     KM_FIELD(struct srv_opts, api_key),
     .arg = "KEY",
     .secret = true,
     .help = "bearer token that each request must carry"},
    {.name = "max-body", KM_FIELD_SIZE(struct srv_opts, max_body), .fallback = "8MiB", .internal = true},
    {.name = "max-connections", KM_FIELD(struct srv_opts, max_connections), .fallback = "4096", .internal = true},
    {.name = "idle-timeout", KM_FIELD(struct srv_opts, idle_timeout), .fallback = "120", .internal = true},
    {.name = "read-timeout", KM_FIELD(struct srv_opts, read_timeout), .fallback = "30", .internal = true},
};

struct km_option_group srv_option_group(struct srv_opts *o)
{
    return KM_OPTION_GROUP("Server", rows, o);
}

struct srv_opts srv_defaults(void)
{
    struct srv_opts o = {.device = "cpu", .kv = "none"};
    struct km_option_group group = srv_option_group(&o);
    km_options_default(&group, 1);
    return o;
}

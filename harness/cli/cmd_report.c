/* kvmark report: writes the tables, the plots and report.html of a result folder from its stored runs. */
#include "base/log.h"
#include "harness/cli/cmd.h"
#include "harness/report/report.h"

#include <stdio.h>

static int run(const struct cmd_call *call)
{
    struct km_err err;
    struct report_result res;
    if (call->args.n != 1) {
        km_fail(&err, KM_EINVAL, "report takes one folder, made by kvmark bench or kvmark run, not %d", call->args.n);
        return cmd_error(&err, CMD_USAGE);
    }
    const char *dir = call->args.v[0];
    int rc = report_write(dir, &res, &err);
    if (rc)
        return cmd_error(&err, cmd_status_of(rc));
    printf("%s%s%s/tables.md\n%s/report.html\n", res.headline, *res.headline ? "\n" : "", dir, dir);
    if (res.missing)
        km_log(KM_LOG_WARN, "%d of %d runs are missing; the report says which", res.missing, res.missing + res.runs);
    if (res.no_gnuplot)
        km_log(KM_LOG_WARN, "the report has no plots: gnuplot is not installed");
    return CMD_OK;
}

const struct cmd cmd_report = {
    .name = "report",
    .usage = "DIR",
    .summary = "Write tables.md, report.html and plots from the runs in a result folder",
    .text =
        "DIR is the result folder of kvmark bench, complete or not, or the folder of one kvmark run. Nothing is run, "
        "and no network is used. report.html is one file that needs no other. Plots need gnuplot; the folder plots/ "
        "holds the data and the script of each plot.",
    .run = run,
};

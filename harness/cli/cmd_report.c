/* kvmark report: tables and page of a result folder, from what is stored in it. */
#include "base/log.h"
#include "base/mem.h"
#include "harness/cli/cmd.h"
#include "harness/report/report.h"

#include <stdio.h>

static int flags(struct km_flag *out, int max)
{
    (void)out;
    (void)max;
    return 0;
}

static int run(int argc, char **argv)
{
    struct km_strs pos = {0};
    struct km_err err = {0};
    struct report_result res;
    bool help;
    int rc = km_args_parse(NULL, 0, argc, argv, &pos, &help, &err), status = CMD_USAGE;
    if (!rc && pos.n != 1)
        rc = km_fail(&err, KM_EINVAL, "report takes one folder, of a bench or of a run, not %d", pos.n);
    if (!rc && !(rc = report_write(pos.v[0], &res, &err))) {
        printf("%s%s%s/tables.md\n%s/report.html\n", res.headline, *res.headline ? "\n" : "", pos.v[0],
               pos.v[0]);
        if (res.missing)
            km_log(KM_LOG_WARN, "%d of %d runs are missing; the report says which", res.missing,
                   res.missing + res.runs);
        if (res.no_gnuplot)
            km_log(KM_LOG_WARN, "gnuplot is not installed: the report has no pictures");
        status = CMD_OK;
    }
    if (rc) {
        km_log(KM_LOG_ERROR, "%s", err.msg);
        status = rc == KM_EIO || rc == KM_ENOMEM ? CMD_FAILED : CMD_USAGE;
    }
    km_free(pos.v);
    return status;
}

const struct cmd cmd_report = {
    .name = "report",
    .usage = "DIR",
    .summary = "Make tables.md, report.html and plots from stored runs",
    .text = "DIR is the result folder of kvmark bench, finished or not, or the folder of one run. Nothing is\n"
            "run and no network is needed; report.html is one file that holds everything. Pictures need\n"
            "gnuplot; plots/ keeps the data and the script of each.",
    .run = run,
    .flags = flags,
};

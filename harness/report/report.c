/* Makes a report step by step. */
#include "harness/report/report.h"

#include "harness/report/report_steps.h"

#include <stdio.h>

static int count_runs(const struct report *r, struct report_result *res, struct km_err *err)
{
    for (int i = 0; i < r->n_runs; i++) {
        res->runs += r->runs[i].loaded;
        res->missing += !r->runs[i].loaded;
    }
    if (res->runs)
        return 0;
    if (!r->n_runs)
        return km_fail(err, KM_ENOENT, "%s holds no finished run yet", r->dir);
    return km_fail(err, KM_ENOENT, "%s holds no finished run yet; its first run, %s, cannot be read: %s", r->dir,
                   r->runs[0].dir, r->runs[0].why);
}

int report_write(const char *dir, struct report_result *res, struct km_err *err)
{
    struct report r;
    *res = (struct report_result){0};
    int rc = report_data_load(&r, dir, err);
    if (!rc)
        rc = count_runs(&r, res, err);
    if (!rc)
        rc = report_make_tables(&r, err);
    if (!rc)
        rc = report_make_notes(&r, err);
    if (!rc)
        rc = report_write_md(&r, err);
    if (!rc)
        rc = report_make_plots(&r, err);
    if (!rc)
        rc = report_write_html(&r, err);
    for (int i = 0; !rc && i < r.suite->n_tables && !*res->headline; i++)
        snprintf(res->headline, sizeof res->headline, "%s", km_buf_str(&r.tables[i].headline));
    res->no_gnuplot = r.no_gnuplot;
    report_data_free(&r);
    return rc;
}

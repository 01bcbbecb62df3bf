/* Writes the files of a plot and prepares its picture for a page. Labels are written by users, so the script has them
 * in single quotes, in which gnuplot expands nothing. */
#include "harness/report/plot.h"

#include "base/file.h"
#include "base/mem.h"
#include "harness/report/asset.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Appends s as a gnuplot string on one line. */
static void put_quoted(struct km_buf *out, const char *s)
{
    km_buf_putc(out, '\'');
    for (; *s; s++) {
        if (*s == '\'')
            km_buf_putc(out, '\'');
        km_buf_putc(out, (unsigned char)*s < 0x20 ? ' ' : *s);
    }
    km_buf_putc(out, '\'');
}

static int write_text(struct km_buf *b, const char *path, struct km_err *err)
{
    int rc = km_buf_ok(b) ? km_file_write(path, b->data, b->len, err)
                          : km_fail(err, KM_ENOMEM, "out of memory writing %s", path);
    km_buf_free(b);
    return rc;
}

/* Writes NAME.gp: the variables of the plot, then common.gp, then the script of this kind of plot. */
static int write_script(const struct plot *p, const char *path, struct km_err *err)
{
    const char *common = asset_text("common.gp"), *script = asset_text(p->script), *name = p->name.data;
    struct km_buf b = {0};
    if (!common || !script)
        return km_fail(err, KM_EINVAL, "there is no plot script plots/%s", p->script);
    km_buf_printf(&b, "# gnuplot %s.gp makes %s.svg from %s.dat\ndat = '%s.dat'\nout = '%s.svg'\nn = %d\n", name, name,
                  name, name, name, p->n);
    km_buf_printf(&b, "array label[%d] = [", p->n);
    for (int i = 0; i < p->n; i++) {
        km_buf_puts(&b, i ? ", " : "");
        put_quoted(&b, km_buf_str(&p->series[i].label));
    }
    km_buf_puts(&b, "]\n");
    if (p->unit) {
        km_buf_puts(&b, "unit = ");
        put_quoted(&b, p->unit);
        km_buf_puts(&b, "\n");
    }
    if (p->last)
        km_buf_printf(&b, "last = %d\n", p->last);
    km_buf_printf(&b, "\n%s\n%s", common, script);
    return write_text(&b, path, err);
}

/* Writes NAME.dat: one block of lines per series. */
static int write_data(const struct plot *p, const char *path, struct km_err *err)
{
    struct km_buf b = {0};
    for (int i = 0; i < p->n; i++) {
        const struct plot_series *series = &p->series[i];
        km_buf_puts(&b, i ? "\n\n# " : "# ");
        for (const char *s = km_buf_str(&series->label); *s; s++)
            km_buf_putc(&b, (unsigned char)*s < 0x20 ? ' ' : *s);
        km_buf_puts(&b, "\n");
        km_buf_put(&b, km_buf_str(&series->data), series->data.len);
        if (!series->data.len)
            km_buf_puts(&b, "NaN NaN NaN NaN\n"); /* gnuplot would not count an empty block */
        b.oom |= series->data.oom || series->label.oom;
    }
    return write_text(&b, path, err);
}

/* Runs `gnuplot ARG` in dir without terminal output. Returns its exit status; 127 if gnuplot is not installed, 126 if
 * it could not be run. */
static int run_gnuplot(const char *dir, const char *arg)
{
    int status = 0;
    pid_t pid = fork();
    if (!pid) {
        int null = open("/dev/null", O_RDWR);
        if (null < 0 || (dir && chdir(dir)))
            _exit(126);
        dup2(null, 0);
        dup2(null, 1);
        dup2(null, 2);
        execlp("gnuplot", "gnuplot", arg, (char *)NULL);
        _exit(127);
    }
    while (pid > 0 && waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return 126;
    return pid > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : 126;
}

bool plot_gnuplot_found(void)
{
    return run_gnuplot(NULL, "--version") == 0;
}

int plot_write(const struct plot *p, const char *dir, struct km_err *err)
{
    struct km_buf script = {0}, data = {0}, svg = {0}, name = {0};
    km_buf_printf(&script, "%s/%s.gp", dir, km_buf_str(&p->name));
    km_buf_printf(&data, "%s/%s.dat", dir, km_buf_str(&p->name));
    km_buf_printf(&svg, "%s/%s.svg", dir, km_buf_str(&p->name));
    km_buf_printf(&name, "%s.gp", km_buf_str(&p->name));
    int rc = 0;
    if (!km_buf_ok(&p->name) || !km_buf_ok(&script) || !km_buf_ok(&data) || !km_buf_ok(&svg) || !km_buf_ok(&name))
        rc = km_fail(err, KM_ENOMEM, "out of memory making a plot");
    if (!rc)
        rc = write_data(p, data.data, err);
    if (!rc)
        rc = write_script(p, script.data, err);
    if (!rc) {
        unlink(svg.data); /* if gnuplot fails, no picture of earlier data may remain */
        int status = run_gnuplot(dir, name.data);
        if (status == 127)
            rc =
                km_fail(err, KM_ENOENT, "gnuplot is not installed; %s and %s are ready for it", script.data, data.data);
        else if (status || !km_file_exists(svg.data))
            rc =
                km_fail(err, KM_EIO, "gnuplot could not draw %s (exit status %d); run gnuplot there to see its message",
                        script.data, status);
    }
    km_buf_free(&script);
    km_buf_free(&data);
    km_buf_free(&svg);
    km_buf_free(&name);
    return rc;
}

void plot_deinit(struct plot *p)
{
    for (int i = 0; i < PLOT_MAX_SERIES; i++) {
        km_buf_free(&p->series[i].label);
        km_buf_free(&p->series[i].data);
    }
    km_buf_free(&p->name);
    p->n = 0;
}

/* The length of the empty group that starts at s; 0 if none starts there. gnuplot opens a group for every change of its
 * pen, used or not; most bytes of its files are empty groups. */
static size_t empty_group(const char *s)
{
    if (strncmp(s, "<g fill=", 8))
        return 0;
    const char *p = s + strcspn(s, ">");
    p += *p == '>';
    p += strspn(p, " \t\r\n");
    return strncmp(p, "</g>", 4) ? 0 : (size_t)(p + 4 - s);
}

/* Copies an SVG and adapts it to a page. Ids and references to ids get a prefix. The colour of lines and text (`ink` in
 * common.gp) becomes the colour of the page. Titles are left out, because browsers show them as tooltips, and so are
 * empty groups and attributes with default values, which make the page large. */
static void put_svg(struct km_buf *out, const char *s, const char *prefix)
{
    static const struct {
        const char *find, *put;
        bool prefix; /* the prefix follows */
    } rules[] = {
        {"id='", "id='", true},
        {"id=\"", "id=\"", true},
        {"xlink:href='#", "xlink:href='#", true},
        {"\"rgb( 51,  51,  51)\"", "\"currentColor\"", false},
        {"'rgb( 51,  51,  51)'", "\"currentColor\"", false},
        {"\"rgb(51,51,51)\"", "\"currentColor\"", false},
        {"'rgb(51,51,51)'", "\"currentColor\"", false},
        {" color=\"black\"", "", false}, /* currentColor would be black inside the group */
        {" color=\"white\"", "", false},
        {" stroke-width=\"1.00\"", "", false},
        {" stroke-linecap=\"butt\"", "", false},
        {" stroke-linejoin=\"miter\"", "", false},
        {" class=\"gridline\"", "", false},
        {" font-family=\"sans-serif\"", "", false},
        {"\t", "", false},
        {"\n\n", "", false},
    };
    while (*s) {
        const char *end = strncmp(s, "<title>", 7) ? NULL : strstr(s, "</title>");
        size_t used = end ? (size_t)(end - s) + strlen("</title>") : empty_group(s);
        for (size_t i = 0; i < sizeof rules / sizeof *rules && !used; i++)
            if (!strncmp(s, rules[i].find, strlen(rules[i].find))) {
                used = strlen(rules[i].find);
                km_buf_puts(out, rules[i].put);
                if (rules[i].prefix)
                    km_buf_printf(out, "%s-", prefix);
            }
        if (!used)
            km_buf_putc(out, s[used++]);
        s += used;
    }
}

int plot_inline(const char *dir, const char *name, const char *alt, struct km_buf *out, struct km_err *err)
{
    struct km_buf path = {0}, svg = {0};
    km_buf_printf(&path, "%s/%s.svg", dir, name);
    int rc = km_buf_ok(&path) ? km_file_read(path.data, 4 << 20, &svg, err)
                              : km_fail(err, KM_ENOMEM, "out of memory reading a plot");
    char *start = rc ? NULL : strstr(km_buf_str(&svg), "<svg"), *end = start ? strchr(start, '>') : NULL;
    char *view = start ? strstr(start, "viewBox=\"") : NULL;
    if (!rc && (!end || !view || view > end))
        rc = km_fail(err, KM_EFORMAT, "%s is not an SVG file made by gnuplot", path.data);
    if (!rc) {
        char *desc = strstr(end, "</desc>");
        view += strlen("viewBox=\"");
        km_buf_printf(out,
                      "<svg role=\"img\" viewBox=\"%.*s\" xmlns=\"http://www.w3.org/2000/svg\" "
                      "xmlns:xlink=\"http://www.w3.org/1999/xlink\" aria-label=\"",
                      (int)strcspn(view, "\""), view);
        km_buf_put_html(out, alt, strlen(alt));
        km_buf_puts(out, "\">");
        put_svg(out, desc ? desc + strlen("</desc>") : end + 1, name);
    }
    km_buf_free(&path);
    km_buf_free(&svg);
    return rc;
}

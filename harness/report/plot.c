/* Three files a plot, and the picture made fit for a page. Labels come from users: in scripts they stand in
 * single quotes, where gnuplot expands nothing. */
#include "harness/report/plot.h"

#include "base/file.h"
#include "base/mem.h"
#include "harness/report/asset.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* One line inside single quotes. */
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

static int write_script(const struct plot *p, const char *path, struct km_err *err)
{
    struct km_buf b = {0};
    km_buf_printf(&b, "%s.gp", p->script);
    const char *common = asset_text("common.gp"), *own = asset_text(km_buf_str(&b));
    km_buf_clear(&b);
    if (!common || !own) {
        km_buf_free(&b);
        return km_fail(err, KM_EINVAL, "there is no plot script \"%s\"", p->script);
    }
    km_buf_printf(&b, "# gnuplot %s.gp makes %s.svg from %s.dat\ndat = '%s.dat'\nout = '%s.svg'\nn = %d\n",
                  p->name, p->name, p->name, p->name, p->name, p->n);
    km_buf_printf(&b, "array label[%d] = [", p->n);
    for (int i = 0; i < p->n; i++) {
        km_buf_puts(&b, i ? ", " : "");
        put_quoted(&b, p->series[i].label);
    }
    km_buf_puts(&b, "]\n");
    if (p->unit) {
        km_buf_puts(&b, "unit = ");
        put_quoted(&b, p->unit);
        km_buf_puts(&b, "\n");
    }
    if (p->last)
        km_buf_printf(&b, "last = %d\n", p->last);
    km_buf_printf(&b, "\n%s\n%s", common, own);
    int rc = km_buf_ok(&b) ? km_file_write(path, b.data, b.len, err)
                           : km_fail(err, KM_ENOMEM, "out of memory writing %s", path);
    km_buf_free(&b);
    return rc;
}

static int write_data(const struct plot *p, const char *path, struct km_err *err)
{
    struct km_buf b = {0};
    for (int i = 0; i < p->n; i++) {
        km_buf_puts(&b, i ? "\n\n# " : "# ");
        for (const char *s = p->series[i].label; *s; s++)
            km_buf_putc(&b, (unsigned char)*s < 0x20 ? ' ' : *s);
        km_buf_puts(&b, "\n");
        km_buf_put(&b, km_buf_str(&p->series[i].data), p->series[i].data.len);
        if (!p->series[i].data.len)
            km_buf_puts(&b, "NaN NaN NaN NaN\n"); /* an empty block would shift the ones after it */
        b.oom |= p->series[i].data.oom;
    }
    int rc = km_buf_ok(&b) ? km_file_write(path, b.data, b.len, err)
                           : km_fail(err, KM_ENOMEM, "out of memory writing %s", path);
    km_buf_free(&b);
    return rc;
}

/* gnuplot ARG in dir, its messages kept from the terminal. Its exit status; 127 when it is not there. */
static int gnuplot(const char *dir, const char *arg)
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
    return gnuplot(NULL, "--version") == 0;
}

int plot_write(const struct plot *p, const char *dir, struct km_err *err)
{
    struct km_buf script = {0}, data = {0}, svg = {0}, name = {0};
    km_buf_printf(&script, "%s/%s.gp", dir, p->name);
    km_buf_printf(&data, "%s/%s.dat", dir, p->name);
    km_buf_printf(&svg, "%s/%s.svg", dir, p->name);
    km_buf_printf(&name, "%s.gp", p->name);
    int rc = km_buf_ok(&script) && km_buf_ok(&data) && km_buf_ok(&svg) && km_buf_ok(&name)
                 ? 0
                 : km_fail(err, KM_ENOMEM, "out of memory plotting %s", p->name);
    if (!rc)
        rc = write_data(p, data.data, err);
    if (!rc)
        rc = write_script(p, script.data, err);
    if (!rc) {
        unlink(svg.data); /* an old picture must not pass for this one */
        int status = gnuplot(dir, name.data);
        if (status == 127)
            rc = km_fail(err, KM_ENOENT, "gnuplot is not installed; %s and %s are ready for it", script.data,
                         data.data);
        else if (status || !km_file_exists(svg.data))
            rc = km_fail(err, KM_EIO, "gnuplot could not draw %s (exit %d); run it there to see why",
                         script.data, status);
    }
    km_buf_free(&script);
    km_buf_free(&data);
    km_buf_free(&svg);
    km_buf_free(&name);
    return rc;
}

void plot_free(struct plot *p)
{
    for (int i = 0; i < PLOT_MAX_SERIES; i++)
        km_buf_free(&p->series[i].data);
    p->n = 0;
}

/* gnuplot opens a group for every change of its pen, drawn with or not: most of a file's bytes. */
static size_t empty_group(const char *s)
{
    if (strncmp(s, "<g fill=", 8))
        return 0;
    const char *p = s + strcspn(s, ">");
    p += *p == '>';
    p += strspn(p, " \t\r\n");
    return strncmp(p, "</g>", 4) ? 0 : (size_t)(p + 4 - s);
}

/* Copies an SVG, changing on the way what depends on the page: ids and references to them get a prefix, ink the
 * page's colour; the groups' titles would show as tooltips and go, and so does what says nothing. */
static void put_svg(struct km_buf *out, const char *s, const char *prefix)
{
    static const char *const marks[] = {"id='", "id=\"", "xlink:href='#"};
    static const char *const inks[] = {"\"rgb( 51,  51,  51)\"", "'rgb( 51,  51,  51)'", "\"rgb(51,51,51)\"",
                                       "'rgb(51,51,51)'"};
    static const char *const idle[] = {" color=\"black\"", /* would make currentColor black inside the group */
                                       " color=\"white\"",
                                       " stroke-width=\"1.00\"",
                                       " stroke-linecap=\"butt\"",
                                       " stroke-linejoin=\"miter\"",
                                       " class=\"gridline\"",
                                       " font-family=\"sans-serif\"",
                                       "\t",
                                       "\n\n"};
    enum {
        MARKS = sizeof marks / sizeof *marks,
        INKS = sizeof inks / sizeof *inks,
        IDLE = sizeof idle / sizeof *idle
    };
    while (*s) {
        const char *end = strncmp(s, "<title>", 7) ? NULL : strstr(s, "</title>");
        size_t used = end ? (size_t)(end - s) + strlen("</title>") : empty_group(s);
        for (int i = 0; i < MARKS && !used; i++)
            if (!strncmp(s, marks[i], strlen(marks[i]))) {
                used = strlen(marks[i]);
                km_buf_put(out, s, used);
                km_buf_printf(out, "%s-", prefix);
            }
        for (int i = 0; i < INKS && !used; i++)
            if (!strncmp(s, inks[i], strlen(inks[i]))) {
                km_buf_puts(out, "\"currentColor\"");
                used = strlen(inks[i]);
            }
        for (int i = 0; i < IDLE && !used; i++)
            used = strncmp(s, idle[i], strlen(idle[i])) ? 0 : strlen(idle[i]);
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
                              : km_fail(err, KM_ENOMEM, "out of memory");
    char *start = rc ? NULL : strstr(km_buf_str(&svg), "<svg"), *end = start ? strchr(start, '>') : NULL;
    char *view = start ? strstr(start, "viewBox=\"") : NULL;
    if (!rc && (!end || !view || view > end))
        rc = km_fail(err, KM_EFORMAT, "%s is not a picture from gnuplot", path.data);
    if (!rc) {
        char *title = strstr(end, "</desc>");
        view += strlen("viewBox=\"");
        km_buf_printf(out,
                      "<svg role=\"img\" viewBox=\"%.*s\" xmlns=\"http://www.w3.org/2000/svg\" "
                      "xmlns:xlink=\"http://www.w3.org/1999/xlink\" aria-label=\"",
                      (int)strcspn(view, "\""), view);
        km_buf_put_html(out, alt, strlen(alt));
        km_buf_puts(out, "\">");
        put_svg(out, title ? title + strlen("</desc>") : end + 1, name);
    }
    km_buf_free(&path);
    km_buf_free(&svg);
    return rc;
}

/* Command lines over option tables. */
#include "base/args.h"

#include "base/mem.h"

#include <ctype.h>
#include <string.h>

enum { HELP_COLUMN = 34 }; /* where help texts begin; the help of a longer name begins on the next line */

static int fail_unknown(const struct km_option_group *groups, int n, const char *name, size_t len, struct km_err *err)
{
    char *word = km_strndup(name, len);
    const char *near = word ? km_option_nearest(groups, n, word) : NULL;
    int rc = near ? km_fail(err, KM_EINVAL, "unknown option --%s; did you mean --%s?", word, near)
                  : km_fail(err, KM_EINVAL, "unknown option --%.*s; --help lists the options", (int)len, name);
    km_free(word);
    return rc;
}

static const struct km_option *find_letter(const struct km_option_group *groups, int n, char letter, void **object)
{
    for (int g = 0; g < n; g++)
        for (int i = 0; i < groups[g].n; i++)
            if (groups[g].rows[i].letter == letter) {
                *object = groups[g].object;
                return &groups[g].rows[i];
            }
    return NULL;
}

/* Parses the option in argv[*i]. If its value is the next argument, *i is advanced to it. */
static int parse_option(const struct km_option_group *groups, int n, int argc, char **argv, int *i, struct km_err *err)
{
    const char *a = argv[*i], *value = NULL;
    const struct km_option *o;
    void *object;
    bool off = false;
    if (a[1] == '-') {
        const char *name = a + 2;
        size_t len = strcspn(name, "=");
        o = km_option_find(groups, n, name, len, &object);
        if (!o && len > 3 && !strncmp(name, "no-", 3)) {
            o = km_option_find(groups, n, name + 3, len - 3, &object);
            off = true;
        }
        if (!o || (off && o->type != KM_BOOL))
            return fail_unknown(groups, n, name, len, err);
        value = name[len] == '=' ? name + len + 1 : NULL;
    } else {
        o = find_letter(groups, n, a[1], &object);
        if (!o)
            return km_fail(err, KM_EINVAL, "unknown option %s; --help lists the options", a);
        value = a[2] ? a + 2 : NULL;
    }
    if (o->type == KM_BOOL) {
        if (value)
            return km_fail(err, KM_EINVAL, "--%s takes no value; write --%s or --no-%s", o->name, o->name, o->name);
        return km_option_set(o, object, off ? "false" : "true", err);
    }
    if (!value && ++*i < argc)
        value = argv[*i];
    if (!value)
        return km_fail(err, KM_EINVAL, "--%s needs a value (%s)", o->name, o->arg ? o->arg : o->values);
    return km_option_set(o, object, value, err);
}

int km_args_parse(const struct km_option_group *groups, int n, int argc, char **argv, struct km_strs *pos, bool *help,
                  struct km_err *err)
{
    *help = false;
    for (int i = 0; i < argc && strcmp(argv[i], "--"); i++)
        *help |= !strcmp(argv[i], "--help") || !strcmp(argv[i], "-h");
    if (*help)
        return 0;
    int rc = 0;
    for (int i = 0; i < argc && !rc; i++) {
        const char *a = argv[i];
        if (!strcmp(a, "--")) {
            while (++i < argc && !rc)
                rc = km_strs_push(pos, argv[i], err);
            return rc;
        }
        if (a[0] != '-' || !a[1] || isdigit((unsigned char)a[1]))
            rc = km_strs_push(pos, a, err);
        else
            rc = parse_option(groups, n, argc, argv, &i, err);
    }
    return rc;
}

void km_args_wrap(struct km_buf *out, const char *text, int indent, int width)
{
    int column = indent; /* columns written of the current line */
    bool first = true;   /* the next word is the first of its line */
    while (*text) {
        if (*text == '\n') {
            km_buf_putc(out, '\n');
            text++;
            if (*text && *text != '\n')
                km_buf_printf(out, "%*s", indent, "");
            column = indent;
            first = true;
            continue;
        }
        if (*text == ' ') {
            text++;
            continue;
        }
        int len = (int)strcspn(text, " \n");
        if (!first && column + 1 + len > width) {
            km_buf_printf(out, "\n%*s", indent, "");
            column = indent;
            first = true;
        }
        km_buf_printf(out, "%s%.*s", first ? "" : " ", len, text);
        column += len + !first;
        first = false;
        text += len;
    }
}

/* Appends the row's help and its default; for a bool that is on by default, also how to switch it off. */
static void describe(const struct km_option *o, struct km_buf *out)
{
    km_buf_puts(out, o->help);
    if (o->type == KM_BOOL && o->fallback && !strcmp(o->fallback, "true"))
        km_buf_printf(out, " (default on; --no-%s)", o->name);
    else if (o->fallback)
        km_buf_printf(out, " (default %s)", o->fallback);
}

/* The placeholder of the option's value in help texts; NULL for a bool. */
static const char *value_name(const struct km_option *o)
{
    return o->type == KM_BOOL ? NULL : o->arg ? o->arg : o->values;
}

static void help_row(const struct km_option *o, int width, struct km_buf *out)
{
    struct km_buf text = {0};
    size_t start = out->len;
    const char *value = value_name(o);
    if (o->letter)
        km_buf_printf(out, "  -%c, ", o->letter);
    else
        km_buf_puts(out, "      ");
    km_buf_printf(out, "--%s%s%s", o->name, value ? " " : "", value ? value : "");
    size_t used = out->len - start;
    if (used + 1 > HELP_COLUMN)
        km_buf_printf(out, "\n%*s", HELP_COLUMN, "");
    else
        km_buf_printf(out, "%*s", (int)(HELP_COLUMN - used), "");
    describe(o, &text);
    km_args_wrap(out, km_buf_str(&text), HELP_COLUMN, width);
    km_buf_putc(out, '\n');
    out->oom |= text.oom;
    km_buf_free(&text);
}

void km_args_help(const struct km_option_group *groups, int n, int width, struct km_buf *out)
{
    for (int g = 0; g < n; g++) {
        if (n > 1)
            km_buf_printf(out, "%s%s:\n", g ? "\n" : "", groups[g].title);
        for (int i = 0; i < groups[g].n; i++)
            if (!groups[g].rows[i].internal)
                help_row(&groups[g].rows[i], width, out);
    }
}

void km_args_roff(struct km_buf *out, const char *text)
{
    bool line_start = true;
    for (; *text; text++) {
        if (text[0] == '\n' && text[1] == '\n') {
            km_buf_puts(out, "\n.PP");
            continue;
        }
        if (line_start && (*text == '.' || *text == '\''))
            km_buf_puts(out, "\\&");
        line_start = *text == '\n';
        if (*text == '\\')
            km_buf_puts(out, "\\e");
        else if (*text == '-')
            km_buf_puts(out, "\\-");
        else
            km_buf_putc(out, *text);
    }
}

static void man_row(const struct km_option *o, struct km_buf *out)
{
    struct km_buf text = {0};
    const char *value = value_name(o);
    km_buf_puts(out, ".TP\n.B ");
    if (o->letter)
        km_buf_printf(out, "\\-%c, ", o->letter);
    km_buf_puts(out, "\\-\\-");
    km_args_roff(out, o->name);
    if (value) {
        km_buf_puts(out, " \\fI");
        km_args_roff(out, value);
        km_buf_puts(out, "\\fR");
    }
    km_buf_putc(out, '\n');
    describe(o, &text);
    km_args_roff(out, km_buf_str(&text));
    km_buf_putc(out, '\n');
    out->oom |= text.oom;
    km_buf_free(&text);
}

void km_args_man(const struct km_option_group *groups, int n, struct km_buf *out)
{
    for (int g = 0; g < n; g++) {
        if (n > 1)
            km_buf_printf(out, ".SS %s\n", groups[g].title);
        for (int i = 0; i < groups[g].n; i++)
            if (!groups[g].rows[i].internal)
                man_row(&groups[g].rows[i], out);
    }
}

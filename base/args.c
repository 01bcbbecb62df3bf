/* Table-driven flags. */
#include "base/args.h"

#include "base/mem.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Levenshtein distance of short names; long ones count as far. */
static int distance(const char *a, const char *b)
{
    enum { MAX = 48 };
    int la = (int)strlen(a), lb = (int)strlen(b), row[MAX + 1];
    if (la > MAX || lb > MAX)
        return MAX;
    for (int j = 0; j <= lb; j++)
        row[j] = j;
    for (int i = 1; i <= la; i++) {
        int diag = row[0];
        row[0] = i;
        for (int j = 1; j <= lb; j++) {
            int sub = diag + (a[i - 1] != b[j - 1]);
            diag = row[j];
            int best = row[j] + 1 < row[j - 1] + 1 ? row[j] + 1 : row[j - 1] + 1;
            row[j] = sub < best ? sub : best;
        }
    }
    return row[lb];
}

const char *km_nearest(const char *word, const char *const *names, int n)
{
    const char *best = NULL;
    int limit = (int)strlen(word) / 3 + 1, d;
    for (int i = 0; i < n; i++)
        if ((d = distance(word, names[i])) <= limit)
            limit = d - 1, best = names[i];
    return best;
}

int km_parse_size(const char *text, int64_t *out, struct km_err *err)
{
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    while (isspace((unsigned char)*end))
        end++;
    static const char units[] = "BKMGT";
    int power = 0;
    bool good = end != text && !errno && isfinite(v) && v >= 0;
    if (good && *end) {
        const char *u = strchr(units, toupper((unsigned char)*end));
        power = u ? (int)(u - units) : 0;
        good = u && (!end[1] || (power && (!strcasecmp(end + 1, "iB") || !strcasecmp(end + 1, "B"))));
    }
    v = ldexp(v, 10 * power);
    if (!good || v > 9e18)
        return km_fail(err, KM_EINVAL, "\"%s\" is not a size; write for example 24GiB or 512MiB", text);
    *out = (int64_t)v;
    return 0;
}

static int set_choice(const struct km_flag *f, const char *value, struct km_err *err)
{
    if (f->arg && strchr(f->arg, '|')) {
        size_t n = strlen(value);
        bool found = false;
        for (const char *p = f->arg; p && !found; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL)
            found = strcspn(p, "|") == n && !strncmp(p, value, n);
        if (!found)
            return km_fail(err, KM_EINVAL, "--%s is \"%s\"; it must be one of %s", f->name, value, f->arg);
    }
    *(const char **)f->dst = value;
    return 0;
}

static int set_number(const struct km_flag *f, const char *value, struct km_err *err)
{
    char *end;
    errno = 0;
    double v = strtod(value, &end);
    bool whole = f->type == KM_INT;
    if (end == value || *end || errno || isnan(v) || (whole && (v != floor(v) || fabs(v) > 9e15)))
        return km_fail(err, KM_EINVAL, "--%s is \"%s\"; it must be a %snumber", f->name, value, whole ? "whole " : "");
    if (f->lo < f->hi && (v < f->lo || v > f->hi))
        return km_fail(err, KM_EINVAL, "--%s is %s; it must be between %.15g and %.15g", f->name, value, f->lo, f->hi);
    if (whole)
        *(int64_t *)f->dst = (int64_t)v;
    else
        *(double *)f->dst = v;
    return 0;
}

static int push(struct km_strs *l, const char *s, struct km_err *err)
{
    const char **v = km_reallocarray(l->v, (size_t)l->n + 1, sizeof *v);
    if (!v)
        return km_fail(err, KM_ENOMEM, "out of memory");
    l->v = v;
    l->v[l->n++] = s;
    return 0;
}

static int set(const struct km_flag *f, const char *value, struct km_err *err)
{
    switch (f->type) {
    case KM_INT:
    case KM_NUM: return set_number(f, value, err);
    case KM_SIZE: {
        int rc = km_parse_size(value, f->dst, err);
        return rc ? km_context(err, "--%s", f->name) : 0;
    }
    case KM_LIST: return push(f->dst, value, err);
    default: return set_choice(f, value, err);
    }
}

static int unknown(const struct km_flag *flags, int n, const char *name, size_t len, struct km_err *err)
{
    const char **names = km_calloc((size_t)n + 1, sizeof *names);
    char *word = km_strndup(name, len);
    const char *near = NULL;
    for (int i = 0; names && i < n; i++)
        names[i] = flags[i].name;
    if (names && word)
        near = km_nearest(word, names, n);
    int rc = near ? km_fail(err, KM_EINVAL, "unknown flag --%s; did you mean --%s?", word, near)
                  : km_fail(err, KM_EINVAL, "unknown flag --%.*s; --help lists the flags", (int)len, name);
    km_free(names);
    km_free(word);
    return rc;
}

int km_args_parse(const struct km_flag *flags, int n_flags, int argc, char **argv, struct km_strs *pos, bool *help,
                  struct km_err *err)
{
    *help = false;
    for (int i = 0; i < argc; i++) {
        char *a = argv[i];
        int rc = 0;
        if (!strcmp(a, "--help") || !strcmp(a, "-h")) {
            *help = true;
            return 0;
        }
        if (!strcmp(a, "--")) {
            while (++i < argc && !rc)
                rc = push(pos, argv[i], err);
            return rc;
        }
        if (a[0] != '-' || !a[1] || isdigit((unsigned char)a[1])) {
            if ((rc = push(pos, a, err)))
                return rc;
            continue;
        }
        bool wide = a[1] == '-';
        const char *name = a + (wide ? 2 : 1);
        size_t len = wide ? strcspn(name, "=") : 1;
        const struct km_flag *f = NULL;
        bool off = false;
        for (int k = 0; k < n_flags && !f; k++) {
            if (wide ? strlen(flags[k].name) == len && !strncmp(flags[k].name, name, len) : flags[k].letter == *name)
                f = &flags[k];
            else if (wide && flags[k].type == KM_BOOL && len > 3 && !strncmp(name, "no-", 3) &&
                     strlen(flags[k].name) == len - 3 && !strncmp(flags[k].name, name + 3, len - 3))
                f = &flags[k], off = true;
        }
        if (!f)
            return wide ? unknown(flags, n_flags, name, len, err)
                        : km_fail(err, KM_EINVAL, "unknown flag %s; --help lists the flags", a);
        const char *value = wide ? (name[len] == '=' ? name + len + 1 : NULL) : (name[1] ? name + 1 : NULL);
        if (f->type == KM_BOOL) {
            if (value)
                return km_fail(err, KM_EINVAL, "--%s takes no value; write --%s or --no-%s", f->name, f->name, f->name);
            *(bool *)f->dst = !off;
            continue;
        }
        if (!value && ++i < argc)
            value = argv[i];
        if (!value)
            return km_fail(err, KM_EINVAL, "--%s needs a value (%s)", f->name, f->arg);
        if ((rc = set(f, value, err)))
            return rc;
    }
    return 0;
}

void km_args_help(const struct km_flag *flags, int n_flags, struct km_buf *out)
{
    for (int i = 0; i < n_flags; i++) {
        size_t start = out->len;
        if (flags[i].letter)
            km_buf_printf(out, "  -%c, ", flags[i].letter);
        else
            km_buf_puts(out, "      ");
        km_buf_printf(out, "--%s%s%s", flags[i].name, flags[i].arg ? " " : "", flags[i].arg ? flags[i].arg : "");
        size_t width = out->len - start;
        km_buf_printf(out, "%*s%s\n", width < 38 ? (int)(38 - width) : 1, "", flags[i].help);
    }
}

/* roff reads a leading dot and a backslash as its own. */
static void put_roff(struct km_buf *out, const char *s)
{
    for (; *s; s++)
        if (*s == '\\')
            km_buf_puts(out, "\\e");
        else if (*s == '-')
            km_buf_puts(out, "\\-");
        else
            km_buf_putc(out, *s);
}

void km_args_man(const struct km_flag *flags, int n_flags, struct km_buf *out)
{
    for (int i = 0; i < n_flags; i++) {
        km_buf_puts(out, ".TP\n.B ");
        if (flags[i].letter)
            km_buf_printf(out, "\\-%c, ", flags[i].letter);
        km_buf_puts(out, "\\-\\-");
        put_roff(out, flags[i].name);
        if (flags[i].arg) {
            km_buf_puts(out, " \\fI");
            put_roff(out, flags[i].arg);
            km_buf_puts(out, "\\fR");
        }
        km_buf_puts(out, "\n");
        put_roff(out, flags[i].help);
        km_buf_puts(out, "\n");
    }
}

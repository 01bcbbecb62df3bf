/* Finds the run folders of a side by its path, and reads them. */
#include "harness/report/compare.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/sort.h"

#include <dirent.h>
#include <string.h>

/* A growing list of paths, owned. */
struct names {
    char **v;
    int n;
};

static void names_free(struct names *l)
{
    for (int i = 0; i < l->n; i++)
        km_free(l->v[i]);
    km_free(l->v);
}

/* Adds a path. The list becomes its owner, also after an error. path NULL: its allocation failed, which is KM_ENOMEM.
 */
static int names_add(struct names *l, char *path, struct km_err *err)
{
    char **v = path ? km_reallocarray(l->v, (size_t)l->n + 1, sizeof *v) : NULL;
    if (!v) {
        km_free(path);
        return km_fail(err, KM_ENOMEM, "out of memory reading the runs of a side");
    }
    l->v = v;
    l->v[l->n++] = path;
    return 0;
}

/* Lists the run folders PATH-1, PATH-2 ... up to the first number without a run folder. */
static int find_repeats(const char *path, struct names *l, struct km_err *err)
{
    for (int k = 1, rc;; k++) {
        struct km_buf b = {0};
        km_buf_printf(&b, "%s-%d", path, k);
        char *p = km_buf_take(&b);
        if (p && !run_folder_exists(p)) {
            km_free(p);
            return 0;
        }
        if ((rc = names_add(l, p, err)))
            return rc;
    }
}

/* Lists the run folders inside a folder, sorted by name. */
static int find_inside(const char *path, struct names *l, struct km_err *err)
{
    DIR *d = opendir(path);
    int rc = 0;
    if (!d)
        return km_fail(err, KM_ENOENT,
                       "there is no run at %s: it is not a folder, and %s-1 is not a run folder (one with run.json)",
                       path, path);
    for (struct dirent *e; !rc && (e = readdir(d));) {
        char *p = e->d_name[0] == '.' ? NULL : km_path(path, e->d_name);
        if (p && run_folder_exists(p))
            rc = names_add(l, p, err);
        else
            km_free(p);
    }
    closedir(d);
    if (!rc && !l->n)
        rc = km_fail(err, KM_ENOENT, "%s holds no run.json and no run folders; give the folder of a run", path);
    if (l->n)
        km_sort_strings((const char **)l->v, (size_t)l->n);
    return rc;
}

static int find_runs(const char *path, struct names *l, struct km_err *err)
{
    if (run_folder_exists(path))
        return names_add(l, km_strdup(path), err);
    int rc = find_repeats(path, l, err);
    return rc || l->n ? rc : find_inside(path, l, err);
}

int compare_side_read(struct compare_side *out, const char *path, struct km_err *err)
{
    struct names l = {0};
    *out = (struct compare_side){0};
    int rc = find_runs(path, &l, err);
    if (!rc) {
        out->runs = km_calloc((size_t)l.n, sizeof *out->runs);
        out->list = km_calloc((size_t)l.n, sizeof *out->list);
        if (!out->runs || !out->list)
            rc = km_fail(err, KM_ENOMEM, "out of memory reading the runs of a side");
    }
    for (int i = 0; !rc && i < l.n; i++) {
        rc = run_folder_read(&out->runs[i], l.v[i], err);
        out->list[i] = &out->runs[i];
        out->n += !rc;
    }
    names_free(&l);
    if (rc)
        compare_side_free(out);
    return rc;
}

void compare_side_free(struct compare_side *s)
{
    for (int i = 0; i < s->n; i++)
        run_folder_free(&s->runs[i]);
    km_free(s->runs);
    km_free(s->list);
    *s = (struct compare_side){0};
}

#include "base/test/test.h"

#include "harness/suite/test/scratch.h"

#include "base/file.h"
#include "base/mem.h"

#include <ftw.h>
#include <string.h>
#include <sys/stat.h>

static char home[64];

const char scratch_basic_suite[] =
    "{'schema':'kvmark.suite.1','title':'A <suite>','pairs':2,"
    "'defaults':{'num-gpu-blocks-override':400},"
    "'tables':[{'id':'5k','title':'Five thousand','workload':'w.json'," SCRATCH_TWO_ROWS "}]}";

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

int scratch_set_up(void **state)
{
    (void)state;
    snprintf(home, sizeof home, "/tmp/kvmark-suite-XXXXXX");
    return mkdtemp(home) ? 0 : -1;
}

int scratch_tear_down(void **state)
{
    (void)state;
    return nftw(home, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

const char *scratch_path(const char *name)
{
    static char paths[4][256];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(paths[turn], sizeof paths[turn], "%s%s%s", home, *name ? "/" : "", name);
    return paths[turn];
}

void scratch_write(const char *name, const char *text)
{
    assert_int_equal(km_file_write(scratch_path(name), text, strlen(text), NULL), 0);
}

char *scratch_read(const char *name)
{
    struct km_buf b = {0};
    assert_int_equal(km_file_read(scratch_path(name), 0, &b, NULL), 0);
    return km_buf_take(&b);
}

void scratch_assert_holds(const char *name, const char *text)
{
    char *all = scratch_read(name);
    if (!strstr(all, text))
        fail_msg("%s does not hold: %s", name, text);
    km_free(all);
}

int scratch_count(const char *text, const char *what)
{
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)); p++)
        n++;
    return n;
}

void scratch_write_suite(const char *text)
{
    char *json = km_strdup(text);
    for (char *p = json; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    scratch_write("s.json", json);
    scratch_write("w.json", "{}");
    km_free(json);
}

struct suite *scratch_suite(const char *text)
{
    struct suite *s = NULL;
    struct km_err err = {0};
    scratch_write_suite(text);
    if (suite_read(&s, scratch_path("s.json"), &err))
        fail_msg("%s", err.msg);
    return s;
}

struct suite_opts scratch_opts(void)
{
    static char dir[128];
    snprintf(dir, sizeof dir, "%s", scratch_path("out"));
    return (struct suite_opts){.dir = dir, .exe = "/proc/self/exe", .command = "kvmark bench s.json -o out"};
}

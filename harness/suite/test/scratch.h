/* A scratch folder for one test, with a suite file in it. Set-up and tear-down are for cmocka; a path, a suite or
 * options from here are for the folder of the running test. */
#ifndef SCRATCH_H
#define SCRATCH_H

#include "harness/suite/suite.h"

int scratch_set_up(void **state);
int scratch_tear_down(void **state);

/* The path of a file in the folder, in one of four buffers that are used in turn; "" gives the folder itself. */
const char *scratch_path(const char *name);

void scratch_write(const char *name, const char *text);
char *scratch_read(const char *name); /* the caller frees it with km_free */

/* Fails the test unless the file holds `text`. */
void scratch_assert_holds(const char *name, const char *text);

/* How often `what` occurs in text. */
int scratch_count(const char *text, const char *what);

/* Writes s.json, and w.json as its workload. In the text, ' stands for the quotes of JSON. */
void scratch_write_suite(const char *text);
/* The same, read; fails the test if it cannot be read. */
struct suite *scratch_suite(const char *text);

/* Options that run into the folder out/ with this test program as the program to run; see fake_run.h. */
struct suite_opts scratch_opts(void);

/* The rows of a table: without and with a cache layer. */
#define SCRATCH_TWO_ROWS                                                                                               \
    "'rows':[{'label':'Without','flags':{'kv-cache':'none'}},"                                                         \
    "{'label':'With','flags':{'kv-cache':'dram=1GiB','chunk-size':256}}]"

/* A suite of one table, 5k, with these rows and two repeats. */
extern const char scratch_basic_suite[];

#endif

/* A scratch folder in /tmp for one test, and the suite files in it. cmocka calls set-up and tear-down around each test;
 * all other functions are about the folder of the running test. */
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

/* Writes the suite file s.json and its workload w.json. The text has ' in place of JSON's ". */
void scratch_write_suite(const char *text);
/* Writes the files as scratch_write_suite does, and reads the suite. Fails the test if the suite cannot be read. */
struct suite *scratch_suite(const char *text);

/* Options of a suite that writes into the folder out/ and runs this test program (fake_run.h). */
struct suite_opts scratch_opts(void);

/* The rows of a table: without and with a cache layer. */
#define SCRATCH_TWO_ROWS                                                                                               \
    "'rows':[{'label':'Without','flags':{'kv-cache':'none'}},"                                                         \
    "{'label':'With','flags':{'kv-cache':'dram=1GiB','chunk-size':256}}]"

/* A suite of the table 5k with SCRATCH_TWO_ROWS and two repeats. */
extern const char scratch_basic_suite[];

#endif

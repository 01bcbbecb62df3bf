/* Writes tables.md: for each table its figures, headline, notes, evidence and token counts. */
#include "harness/report/report_steps.h"

#include "base/file.h"
#include "base/mem.h"

#include <string.h>

/* Appends the lines of `text` as a Markdown list. */
static void put_list(struct km_buf *out, const char *text)
{
    while (*text) {
        size_t n = strcspn(text, "\n");
        km_buf_puts(out, "- ");
        km_buf_put(out, text, n);
        km_buf_puts(out, "\n");
        text += n + (text[n] == '\n');
    }
}

static void put_table(struct km_buf *out, const struct report_table *t)
{
    km_buf_printf(out, "\n## %s\n\n", t->spec->title);
    table_grid_md(&t->grid, out);
    if (t->headline.len)
        km_buf_printf(out, "\n%s\n", t->headline.data);
    km_buf_puts(out, "\n");
    put_list(out, km_buf_str(&t->notes));
    put_list(out, km_buf_str(&t->warnings));
    if (t->evidence.n_rows > 1) {
        km_buf_printf(out, "\nEvidence. %s\n\n", km_buf_str(&t->evidence_caption));
        table_grid_md(&t->evidence, out);
    }
    km_buf_puts(out, "\nTokens. " REPORT_TOKENS_CAPTION "\n\n");
    table_grid_md(&t->tokens, out);
}

int report_write_md(const struct report *r, struct km_err *err)
{
    struct km_buf b = {0};
    km_buf_printf(&b, "# %s\n", r->suite->title);
    for (int i = 0; i < r->suite->n_notes; i++)
        km_buf_printf(&b, "\n%s\n", r->suite->notes[i]);
    for (int i = 0; i < r->suite->n_tables; i++)
        if (r->tables[i].reps)
            put_table(&b, &r->tables[i]);
    char *path = km_path(r->dir, "tables.md");
    int rc = km_buf_ok(&b) && path ? km_file_write(path, b.data, b.len, err) : report_no_memory(err);
    km_free(path);
    km_buf_free(&b);
    return rc;
}

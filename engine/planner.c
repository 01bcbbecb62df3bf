/* Estimates from two rates: the rate of steps, measured here, and the rate of loads, measured by the cache layer. */
#include "engine/planner.h"

#include "base/min.h"

/* A step of at least this many rows is limited by arithmetic, so its time is proportional to its rows. */
enum { LARGE_STEP = 256 };
/* Weight of a new step in the average time per row. */
static const double ROW_WEIGHT = 0.25;
/* Weights of a new step in the time of a small step, if it was shorter than the average, or longer. A delay of the host
 * makes a step longer, never shorter. */
static const double FLOOR_WEIGHT_SHORTER = 0.5, FLOOR_WEIGHT_LONGER = 0.05;
/* A load is started if it is expected to take at most this share of the time to compute everything. */
static const double WORTHWHILE = 0.95;
/* A step with rows of the front may take this share of the expected rest of the load. */
static const double SAFE_SHARE = 0.95;
/* The front is computed while the load runs only if this shortens the load by at least this share. Copies and steps
 * slow each other down, and rows of the front make steps longer for requests that decode. */
static const double WORTH_OVERLAP = 0.2;
/* A cut does not stop copies in flight, which are a few chunks. A load of at most this many chunks therefore begins
 * where the two directions are expected to meet. A longer load includes the whole prefix, so that it can go on if steps
 * take longer than expected. */
enum { EXACT_CHUNKS = 4 };
/* The load keeps this share of the tokens that it is expected to load until it meets the steps. */
static const double SLACK = 0.1;
/* A load that takes longer than expected by this factor runs at an unknown rate. It is then assumed to need another
 * quarter of the time that it has taken. */
static const double OVERDUE = 1.25, OVERDUE_REST = 0.25;
/* A load is abandoned if it takes longer than expected by this factor, by this time, and by this share of the time to
 * compute its tokens. */
static const double LATE_FACTOR = 1.5, LATE_NS = 20e6, LATE_SHARE = 0.125;

void pln_init(struct pln *p, enum pln_mode mode, int block_size, int chunk_size, int max_tokens)
{
    *p = (struct pln){.mode = mode, .block_size = block_size, .chunk_size = chunk_size, .max_tokens = max_tokens};
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

void pln_add_step(struct pln *p, int n_rows, int64_t ns)
{
    if (n_rows >= km_min(LARGE_STEP, p->max_tokens)) {
        double row_ns = (double)ns / n_rows;
        p->row_ns += (row_ns - p->row_ns) * (p->row_ns > 0 ? ROW_WEIGHT : 1);
    } else {
        double more = (double)ns - p->floor_ns;
        p->floor_ns += more * (p->floor_ns <= 0 ? 1 : more < 0 ? FLOOR_WEIGHT_SHORTER : FLOOR_WEIGHT_LONGER);
    }
}

double pln_step_ns(const struct pln *p, int n_rows)
{
    return n_rows > 0 ? larger(p->floor_ns, n_rows * p->row_ns) : 0;
}

double pln_compute_ns(const struct pln *p, int n_rows)
{
    return n_rows / p->max_tokens * pln_step_ns(p, p->max_tokens) + pln_step_ns(p, n_rows % p->max_tokens);
}

/* A choice: to load the last `chunks` chunks of tokens [have, to), and to compute the tokens before them. */
struct choice {
    int from;                         /* first token of the load */
    double load_ns, front_ns, all_ns; /* of the load, of the steps before `from`, and until the first output token */
};

static struct choice choose(const struct pln *p, const struct kv_port *port, struct kv_seq *kv, int have, int to, int n,
                            int chunks)
{
    if (!chunks)
        return (struct choice){to, 0, pln_compute_ns(p, n - have), pln_compute_ns(p, n - have)};
    int first = (to - 1) / p->chunk_size - (chunks - 1);
    struct choice c = {.from = km_max(have, first * p->chunk_size)};
    c.load_ns = (double)port->load_ns(kv, c.from, to);
    c.front_ns = pln_compute_ns(p, c.from - have);
    c.all_ns = larger(c.load_ns, c.front_ns) + pln_step_ns(p, n - to);
    return c;
}

int pln_load_from(const struct pln *p, const struct kv_port *port, struct kv_seq *kv, int have, int to, int n)
{
    if (p->mode == PLN_COMPUTE)
        return to;
    if (p->mode == PLN_LOAD || p->row_ns <= 0)
        return have;
    /* The more chunks are loaded, the longer the load takes and the shorter the steps. Find the most chunks whose load
     * takes no longer than the steps. */
    int low = 0, most = (to - 1) / p->chunk_size - have / p->chunk_size + 1, high = most;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        struct choice c = choose(p, port, kv, have, to, n, middle);
        if (c.load_ns <= c.front_ns)
            low = middle;
        else
            high = middle - 1;
    }
    struct choice best = choose(p, port, kv, have, to, n, low);
    if (low < most) {
        struct choice more = choose(p, port, kv, have, to, n, ++low);
        if (more.all_ns <= best.all_ns)
            best = more;
        else
            low--;
    }
    if (best.all_ns > WORTHWHILE * pln_compute_ns(p, n - have))
        return to;
    return low > EXACT_CHUNKS ? have : best.from;
}

struct pln_load pln_load_begin(const struct pln *p, const struct kv_port *port, struct kv_seq *kv, int from, int to,
                               int64_t now)
{
    struct pln_load l = {.began_ns = now, .from = from, .to = to, .all_ns = (double)port->load_ns(kv, from, to)};
    int last = km_max(from, (to - 1) / p->chunk_size * p->chunk_size); /* the chunk that is loaded first */
    if (last > from)
        l.token_ns = larger(0, (l.all_ns - (double)port->load_ns(kv, last, to)) / (last - from));
    return l;
}

static double expected_ns(const struct pln_load *l, int first)
{
    return l->all_ns - l->token_ns * (km_min(first, l->to) - l->from);
}

double pln_left_ns(const struct pln_load *l, int first, int64_t now)
{
    double took = (double)(now - l->began_ns), expected = expected_ns(l, first);
    return took > OVERDUE * expected ? OVERDUE_REST * took : larger(0, expected - took);
}

/* Rows of the front that can be computed before the load ends, if the load is cut by the tokens that they compute. Each
 * row takes row_ns, and each token that is cut makes the load shorter by token_ns. must: rows before the load's tokens.
 * n_other: rows of other requests in the step. */
static int rows_before_end(const struct pln *p, const struct pln_load *l, int must, double left_ns, int n_other)
{
    double rest = SAFE_SHARE * (left_ns + l->token_ns * must) - n_other * p->row_ns;
    double rows = rest / (p->row_ns + SAFE_SHARE * l->token_ns);
    return rows < l->to ? (int)rows : l->to;
}

/* The largest number of rows, at most `rows`, with which the step delays no other request. */
static int rows_before_others(const struct pln *p, const struct pln_step *s, int rows)
{
    /* If the step has other rows, the time for them passes anyway. */
    double most = larger(s->others_ns, pln_step_ns(p, s->n_rows));
    if (pln_step_ns(p, s->n_rows + rows) <= most)
        return rows;
    int fit = most < p->floor_ns ? 0 : (int)(most / p->row_ns) - s->n_rows;
    return km_max(km_min(rows, fit), 0) / p->block_size * p->block_size;
}

struct pln_front pln_front(const struct pln *p, const struct pln_load *l, int x, int first, const struct pln_step *s,
                           int64_t now)
{
    int must = first - x; /* tokens that the load does not own, so they must be computed */
    int last = (l->to - 1) / p->block_size * p->block_size; /* the load keeps its last block at least */
    if (p->mode != PLN_AUTO || p->row_ns <= 0)
        return (struct pln_front){km_min(must, s->budget), first};
    double left = pln_left_ns(l, first, now);
    bool overlap = l->token_ns >= WORTH_OVERLAP * (l->token_ns + p->row_ns);
    int meet = overlap ? rows_before_end(p, l, must, left, s->n_rows) / p->block_size * p->block_size : must;
    int rows = km_min(km_max(must, km_min(meet, last - x)), s->budget);
    if (rows > must)
        rows = must + (rows - must) / p->block_size * p->block_size;
    /* A small step takes as long as a larger one. If the step has other rows, that time passes anyway. */
    if (!must && !s->n_rows && p->floor_ns > SAFE_SHARE * (left - l->token_ns * rows))
        rows = 0;
    rows = rows_before_others(p, s, rows);
    /* The load is cut ahead of the steps, where the two directions are expected to meet, because a later cut would not
     * stop the copies that are then in flight. The load keeps some more tokens while it is far from this place. */
    int upto = km_min(x + meet, last);
    if (upto > first && l->token_ns > 0)
        upto -= (int)(SLACK * (left / l->token_ns - (upto - first)));
    upto = km_max(upto, x + rows) / p->block_size * p->block_size;
    return (struct pln_front){rows, km_max(first, upto)};
}

bool pln_abandons(const struct pln *p, const struct pln_load *l, int first, int64_t now)
{
    double took = (double)(now - l->began_ns), expected = expected_ns(l, first), late = took - expected;
    return p->mode == PLN_AUTO && p->row_ns > 0 && took > LATE_FACTOR * expected && late > LATE_NS &&
           late > LATE_SHARE * pln_compute_ns(p, l->to - first);
}

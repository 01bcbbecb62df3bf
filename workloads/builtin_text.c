/* The built-in text: a seeded grammar that writes chapters of narrative, dialogue, letters and ledgers.
 *
 * The text replaces the novel of vLLM's workload on a machine that cannot download it. So it must tokenize like
 * English, and must not repeat: a sentence has about forty bits of choice, and each chapter has new characters with
 * invented names. Repeated text would give the server's prefix cache hits that a novel does not give.
 *
 * Templates are expanded depth-first. %x becomes a random entry of the list with code x: a word, or a template again.
 * At depth MAX_DEPTH only the first `flat` entries of a list are used, which refer to word lists only. Some codes are
 * not lists: %N is a character of the chapter, %F a family name, %u a number, %1 a day of the month, %y a year. The
 * text is wrapped at 72 columns, like the plain-text books of Project Gutenberg. */
#include "workloads/builtin_text.h"

#include "workloads/rng.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { COLUMNS = 72, MAX_DEPTH = 6, CAST = 5, NAME_LEN = 40 };

/* clang-format off */
static const char *const nouns[] = { /* things */
    "lantern", "letter", "orchard", "clock", "harbour", "window", "candle", "ledger", "bridge", "carriage",
    "winter", "garden", "river", "mirror", "engine", "map", "compass", "violin", "kettle", "basket",
    "curtain", "ladder", "hammer", "anchor", "feather", "shadow", "whistle", "staircase", "cellar",
    "blanket", "parcel", "pocket", "needle", "envelope", "saddle", "barrel", "chimney", "telescope",
    "notebook", "promise", "quarrel", "rumour", "bargain", "secret", "debt", "fortune", "journey",
    "silence", "answer", "question", "storm", "morning", "evening", "signal", "shipment", "inheritance",
    "portrait", "manuscript", "telegram", "argument", "invention", "expedition", "experiment", "ceremony",
    "confession", "illness", "memory", "melody", "ambition", "opinion", "warning", "accident",
    "opportunity", "umbrella", "inkwell", "almanac", "locket", "pistol", "key", "wallet", "coin", "spade",
    "rope", "oar", "net", "wagon", "mule", "hound", "sparrow", "heron", "ox", "island", "teapot",
    "bookshelf", "handkerchief", "passport", "sundial", "wheelbarrow", "chessboard", "bonnet", "harness",
    "microscope"};
static const char *const people[] = {
    "sailor", "merchant", "uncle", "stranger", "doctor", "captain", "widow", "apprentice", "gardener",
    "miller", "judge", "clerk", "baker", "fisherman", "shepherd", "magistrate", "librarian", "organist",
    "surveyor", "coachman", "innkeeper", "daughter", "nephew", "neighbour", "schoolmaster", "cousin",
    "governess", "poacher", "pilot", "painter", "countess", "ferryman", "blacksmith", "nurse", "lieutenant",
    "carpenter", "actress", "beggar", "messenger", "postman", "orphan", "admiral", "tailor", "gamekeeper",
    "editor", "abbot", "burglar", "musician"};
static const char *const plurals[] = {
    "coins", "letters", "horses", "windows", "barrels", "lamps", "sacks", "sheep", "books", "boats",
    "soldiers", "visitors", "witnesses", "apples", "stones", "miles", "shillings", "crates", "drawings",
    "instruments", "nails", "bottles", "ropes", "children", "strangers", "workmen", "passengers", "candles",
    "chairs", "steps", "pages", "acres", "swans", "bells", "carts", "gloves", "bricks", "charts",
    "receipts", "keys", "oranges", "herrings"};
static const char *const places[] = {
    "market", "library", "station", "church", "valley", "village", "workshop", "kitchen", "attic", "quay",
    "forest", "meadow", "hospital", "theatre", "courtyard", "schoolroom", "lighthouse", "mill", "tavern",
    "chapel", "museum", "tunnel", "square", "hillside", "boathouse", "stable", "counting-house",
    "observatory", "graveyard", "ballroom", "bakery", "corridor", "terrace", "vineyard", "quarry", "marsh",
    "customs house", "post office", "town hall", "cottage", "monastery", "railway", "canal", "dockyard",
    "greenhouse", "armoury", "bay", "upper floor", "estuary"};
static const char *const adjectives[] = {
    "old", "quiet", "narrow", "bright", "broken", "distant", "cheerful", "weary", "honest", "curious",
    "stubborn", "gentle", "bitter", "hollow", "crooked", "elegant", "faded", "golden", "heavy", "immense",
    "jealous", "kindly", "lonely", "muddy", "nervous", "obscure", "patient", "reckless", "silent", "timid",
    "unusual", "vivid", "wooden", "ancient", "brass", "careful", "damp", "eager", "foreign", "grey",
    "humble", "iron", "idle", "loyal", "modest", "noisy", "orderly", "pale", "polite", "ragged", "scarlet",
    "severe", "slender", "solemn", "sudden", "tall", "tedious", "tender", "uneasy", "violent", "wretched",
    "absurd", "brilliant", "clumsy", "dusty", "famous", "frozen", "generous", "harmless", "invisible",
    "little", "mysterious", "neglected", "ordinary", "peculiar", "respectable", "second-hand", "threadbare",
    "unfinished", "valuable", "well-kept", "yellow", "empty", "enormous", "early"};
static const char *const adverbs[] = {
    "slowly", "at once", "quietly", "without a word", "again", "carefully", "too late", "eagerly", "coldly",
    "in vain", "almost gladly", "twice", "with some difficulty", "politely", "in good order", "suddenly",
    "as usual", "gravely", "for the last time", "by mistake", "under protest", "with great care",
    "on purpose", "in secret", "absently", "at length", "bravely", "by candlelight", "before dawn",
    "after supper", "until nightfall", "half asleep", "with a shrug", "in a low voice", "ahead of time",
    "by degrees", "on foot", "in the rain", "alone", "together"};
static const char *const acts[] = { /* past tense, with an object */
    "found", "carried", "forgot", "remembered", "sold", "opened", "painted", "followed", "mended", "hid",
    "borrowed", "examined", "lost", "praised", "refused", "bought", "measured", "described", "buried",
    "recognised", "answered", "dropped", "guarded", "counted", "admired", "doubted", "copied", "returned",
    "studied", "trusted", "abandoned", "accepted", "blamed", "collected", "defended", "delivered",
    "discovered", "envied", "fetched", "greeted", "inspected", "interrupted", "lifted", "noticed",
    "offered", "overheard", "polished", "promised", "questioned", "repaired", "rescued", "searched",
    "sketched", "surrendered", "tested", "understood", "unlocked", "welcomed", "wrapped", "weighed"};
static const char *const moves[] = { /* past tense, without one */
    "waited", "laughed", "slept", "listened", "disappeared", "trembled", "hesitated", "arrived", "departed",
    "smiled", "wept", "worked", "wandered", "stumbled", "whispered", "sang", "knelt", "nodded", "frowned",
    "turned back", "stood still", "looked up", "sat down", "walked on", "gave in", "fell ill", "kept watch",
    "went home", "grew pale", "said nothing", "lost patience", "set out", "held firm", "drew nearer",
    "changed colour", "rose early"};
static const char *const bases[] = { /* infinitive, with an object */
    "find", "carry", "forget", "sell", "open", "follow", "mend", "hide", "keep", "lose", "refuse", "buy",
    "describe", "bury", "answer", "guard", "count", "trust", "copy", "return", "study", "accept", "deliver",
    "bring", "watch", "search", "repair", "rescue", "unlock", "burn", "share", "send", "believe", "explain",
    "pay for", "look after"};
static const char *const doings[] = {
    "finding", "carrying", "selling", "opening", "following", "mending", "hiding", "losing", "refusing",
    "buying", "describing", "counting", "copying", "watching", "searching", "repairing", "sending",
    "explaining", "guarding", "drawing", "polishing", "weighing", "discussing", "avoiding", "admiring",
    "collecting"};
static const char *const thinks[] = {
    "knew", "feared", "believed", "said", "supposed", "insisted", "wrote", "admitted", "noticed", "hoped",
    "suspected", "swore", "declared", "explained"};
static const char *const says[] = {
    "said", "replied", "murmured", "cried", "answered", "observed", "began", "added", "repeated",
    "remarked", "declared", "whispered", "went on", "put in"};
static const char *const whens[] = {
    "that morning", "the next day", "toward evening", "on %w", "in the spring of %y", "after %u %k",
    "for %u %k", "by the end of %m", "at %h o'clock", "meanwhile", "long before that", "in those days",
    "during the %a %n", "at the first frost", "a week later", "since %m", "on the %1 of %m",
    "when the bells had stopped", "one night", "as soon as the tide turned", "to the surprise of %s",
    "in spite of the %n", "without %g %o"};
static const char *const spans[] = {
    "days", "weeks", "months", "years", "hours", "minutes", "nights", "winters"};
static const char *const months[] = {
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December"};
static const char *const weekdays[] = {
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"};
static const char *const hours[] = {
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"};
static const char *const subjects[] = {
    "%N", "%N", "%N", "the %r", "the %a %r", "a %a %r", "%N", "nobody", "everyone in the %p", "his %a %r",
    "her %r", "the %r of %F", "%N's %r", "the %n", "%N's %n", "one of the %j", "the %r from the %p",
    "a %r whom %N %v", "the %a %n that %N %v %l"};
static const char *const objects[] = {
    "the %n", "the %a %n", "a %n", "a %a %n", "his %n", "her %a %n", "%u %j", "%N", "nothing", "some %a %j",
    "the %j of %N", "%N's %a %n", "the %n of the %p", "both the %n and the %n", "a %n for %N",
    "every %r %l", "the %n that %N %v", "the %a %r", "more %j than the %r could carry"};
static const char *const where[] = {
    "in the %p", "near the %p", "behind the %a %p", "at %F", "across the %p", "on the road to %F",
    "beside the %n", "under the %n", "between the %p and the %p", "beyond %F", "in front of %s",
    "outside the %p at %F", "where %c"};
static const char *const clauses[] = {
    "%s %i", "%s %i %d", "%s %v %o", "%s %v %o %d", "%s %v %o %l", "%s %i %l", "there was %o %l",
    "%s was %a", "%s had %u %j", "%s could not %b %o", "%s thought of %g %o", "%s %t that %c",
    "%s, who %i %l, %v %o", "%s neither %v %o nor %v %o", "it seemed to %s that %c",
    "%s wanted to %b %o %e", "%N and %N %v %o"};
static const char *const sentences[] = {
    "%c.", "%c.", "%e, %c.", "%e, %c.", "%c, and %c.", "%c, but %c.", "%c; %c.", "%c because %c.",
    "when %c, %c.", "although %c, %c.", "%c %e.", "it was %a %l, and %c.", "%s %v %o, %v %o, and %i.",
    "%c: %o, %o, and %o.", "what %s %v was not %o but %o.", "nobody asked why %c.", "so %c.",
    "%c\xE2\x80\x94or so %s %t\xE2\x80\x94" "and %c.", "if %s %v %o, it was only because %c.",
    "there were %u %j %l, and %s %v them %d.", "how %a %s looked %e!", "not one of the %j was %a.",
    "had %s %v %o?", "%g %o is never %a, and %s %t so."};
static const char *const speeches[] = {
    "I shall %b %o %e", "you must %b %o", "we never %v %o", "there is nothing %l but %o",
    "%N will %b %o, I am sure", "do not %b %o", "it was %N who %v %o", "I have seen %u %j %l",
    "that %n is worth %u %j", "my %n is %a", "they say that %c", "give me %o, and I will %b %o",
    "the %n is %a, but the %r is not", "let us %b %o %d", "I was %l when %c", "you speak of %o as if %c",
    "nobody can %b %o %l"};
static const char *const questions[] = {
    "who %v %o", "why should I %b %o", "have you seen %o", "where is %o", "is %s still %l",
    "what became of %o", "how could %N %b %o", "did %N really %b %o", "when did you last %b %o",
    "shall we %b %o or %b %o"};
static const char *const dialogues[] = {
    "\"%Q,\" %z %N.", "\"%Q,\" %z %N %d. \"%Q.\"", "\"%X?\" asked %N.", "\"%X?\" asked %N. \"%Q.\"",
    "\"%Q!\" cried %N.", "%N looked at %N. \"%Q,\" %z %N.", "\"%Q,\" %z %N, \"and %q.\"",
    "\"No,\" %z %N; \"%q.\"", "\"Yes,\" %z %N. \"%Q. %E\"", "\"%X? %X?\"", "%E \"%Q,\" %z %N at last.",
    "\"%Q,\" %z the %r; and %c.", "\"%Q.\"", "\"%X?\"", "\"%N!\" %z %N. \"%Q!\""};
/* clang-format on */

struct list {
    char code;            /* %code in a template */
    const char *const *v; /* [n] words or templates */
    int n, flat;          /* entries; the first `flat` of them refer to word lists only */
};
/* clang-format off */
#define LIST(code, v, flat) {code, v, (int)(sizeof v / sizeof *v), flat}
/* clang-format on */
#define WORDS(code, v) LIST(code, v, (int)(sizeof v / sizeof *v))
static const struct list lists[] = {
    WORDS('n', nouns),      WORDS('r', people),      WORDS('j', plurals),    WORDS('p', places),
    WORDS('a', adjectives), WORDS('d', adverbs),     WORDS('v', acts),       WORDS('i', moves),
    WORDS('b', bases),      WORDS('g', doings),      WORDS('t', thinks),     WORDS('z', says),
    WORDS('k', spans),      WORDS('m', months),      WORDS('w', weekdays),   WORDS('h', hours),
    LIST('e', whens, 6),    LIST('s', subjects, 6),  LIST('o', objects, 10), LIST('l', where, 9),
    LIST('c', clauses, 6),  LIST('E', sentences, 4), LIST('q', speeches, 6), LIST('x', questions, 5),
    LIST('D', dialogues, 5)};

/* clang-format off */
static const char *const given[] = {
    "Agnes", "Albin", "Bertha", "Caspar", "Clara", "Conrad", "Dora", "Edgar", "Elias", "Emilia", "Ernest",
    "Esther", "Felix", "Flora", "Frederick", "Gerda", "Gideon", "Greta", "Harold", "Helena", "Hugo", "Ida",
    "Irma", "Isaac", "Jonas", "Josephine", "Julius", "Karl", "Laura", "Leonard", "Lydia", "Magnus",
    "Marian", "Matthew", "Nora", "Oscar", "Otto", "Paula", "Philip", "Rachel", "Ralph", "Robert", "Rosa",
    "Rupert", "Sabina", "Samuel", "Selma", "Simon", "Stella", "Theodore", "Thomas", "Ursula", "Victor",
    "Viola", "Walter", "Wilhelmina", "William", "Winifred"};
static const char *const heads[] = {
    "Ash", "Bel", "Brand", "Car", "Cor", "Dal", "Dun", "Elm", "Fair", "Gar", "Gren", "Hal", "Har", "Hol",
    "Ken", "Lan", "Lin", "Mar", "Mel", "Mor", "Nor", "Old", "Pem", "Quin", "Ros", "San", "Sel", "Stan",
    "Thorn", "Tor", "Ver", "Wal", "Wes", "Win"};
static const char *const tails[] = {
    "berry", "borough", "by", "combe", "cott", "dale", "den", "field", "ford", "ham", "hurst", "ington",
    "kin", "ley", "low", "man", "mere", "mond", "more", "ner", "nock", "over", "ridge", "sby", "shaw",
    "son", "stead", "sworth", "ton", "vale", "ward", "well", "wick", "wood"};
static const char *const titles[] = {
    "Mr.", "Mrs.", "Miss", "Captain", "Doctor", "Professor", "Judge", "Lady"};
/* clang-format on */

struct writer {
    struct wl_mt r;
    char cast[CAST][NAME_LEN]; /* names of the chapter's characters */
    struct km_buf line;        /* the current paragraph, not wrapped */
    struct km_buf *out;
};

static int pick(struct writer *w, int n)
{
    return (int)wl_mt_int(&w->r, 0, n - 1);
}
#define PICK(w, list) ((list)[pick(w, (int)(sizeof(list) / sizeof *(list)))])

static void put_number(struct writer *w)
{
    static const int tops[] = {12, 12, 40, 100, 900, 30000};
    int v = 2 + pick(w, PICK(w, tops));
    if (v <= 12)
        km_buf_puts(&w->line, hours[v - 1]);
    else if (v < 1000)
        km_buf_printf(&w->line, "%d", v);
    else
        km_buf_printf(&w->line, "%d,%03d", v / 1000, v % 1000);
}

/* Appends the expanded template. An upper-case code other than D makes the first letter of its expansion upper-case. */
static void expand(struct writer *w, const char *tpl, int depth)
{
    for (const char *p = tpl; *p; p++) {
        if (*p != '%') {
            km_buf_putc(&w->line, *p);
            continue;
        }
        p++;
        if (*p == 'N') {
            km_buf_puts(&w->line, w->cast[pick(w, CAST)]);
        } else if (*p == 'F') {
            const char *head = PICK(w, heads), *tail = PICK(w, tails);
            km_buf_printf(&w->line, "%s%s", head, tail);
        } else if (*p == 'u') {
            put_number(w);
        } else if (*p == '1') {
            int day = 1 + pick(w, 20);
            km_buf_printf(&w->line, "%d%s", day, day == 1 ? "st" : day == 2 ? "nd" : day == 3 ? "rd" : "th");
        } else if (*p == 'y') {
            km_buf_printf(&w->line, "%d", 1780 + pick(w, 140));
        } else {
            const struct list *l = lists;
            char code = *p == 'X' ? 'x' : *p == 'Q' ? 'q' : *p;
            while (l->code != code)
                l++;
            size_t at = w->line.len;
            expand(w, l->v[pick(w, depth >= MAX_DEPTH ? l->flat : l->n)], depth + 1);
            if (isupper((unsigned char)*p) && *p != 'D' && w->line.len > at)
                w->line.data[at] = (char)toupper((unsigned char)w->line.data[at]);
        }
    }
}

/* Appends the template, expanded, as a sentence that begins with a capital. */
static void put_sentence(struct writer *w, const char *tpl)
{
    if (w->line.len)
        km_buf_putc(&w->line, ' ');
    size_t at = w->line.len;
    expand(w, tpl, 0);
    if (!km_buf_ok(&w->line))
        return;
    while (w->line.data[at] == '"')
        at++;
    w->line.data[at] = (char)toupper((unsigned char)w->line.data[at]);
}

static bool is_vowel(char c)
{
    return c && strchr("aeiouAEIOU", c);
}

/* Writes the paragraph in w->line to w->out, wrapped, and clears w->line. "a" becomes "an" before a vowel, and quotes
 * become curly. */
static void flush_paragraph(struct writer *w)
{
    static const char *const curly[] = {"\xE2\x80\x9C", "\xE2\x80\x9D"};
    int column = 0;
    bool open = false;
    for (const char *p = km_buf_str(&w->line); *p;) {
        size_t n = strcspn(p, " ");
        const char *next = p + n + strspn(p + n, " ");
        if (column && column + 1 + (int)n > COLUMNS) {
            km_buf_putc(w->out, '\n');
            column = 0;
        } else if (column) {
            km_buf_putc(w->out, ' ');
            column++;
        }
        for (size_t i = 0; i < n; i++) {
            if (p[i] == '"') {
                km_buf_puts(w->out, curly[open]);
                open = !open;
            } else {
                km_buf_putc(w->out, p[i]);
            }
        }
        column += (int)n;
        if ((p[n - 1] == 'a' || p[n - 1] == 'A') && (n == 1 || (n == 2 && p[0] == '"')) && is_vowel(*next)) {
            km_buf_putc(w->out, 'n');
            column++;
        }
        p = next;
    }
    km_buf_puts(w->out, "\n\n");
    w->out->oom |= w->line.oom;
    km_buf_clear(&w->line);
}

static void choose_cast(struct writer *w)
{
    for (int i = 0; i < CAST; i++) {
        const char *first = PICK(w, given), *head = PICK(w, heads), *tail = PICK(w, tails);
        int form = pick(w, 4);
        if (form == 0)
            snprintf(w->cast[i], NAME_LEN, "%s", first);
        else if (form == 1)
            snprintf(w->cast[i], NAME_LEN, "%s %s%s", first, head, tail);
        else if (form == 2)
            snprintf(w->cast[i], NAME_LEN, "%s %s%s", PICK(w, titles), head, tail);
        else
            snprintf(w->cast[i], NAME_LEN, "old %s%s", head, tail);
    }
}

static void put_paragraph(struct writer *w)
{
    int form = pick(w, 20);
    if (form < 9) { /* narrative */
        for (int n = 3 + pick(w, 5); n > 0; n--)
            put_sentence(w, "%E");
        flush_paragraph(w);
    } else if (form < 17) { /* dialogue */
        for (int n = 2 + pick(w, 4); n > 0; n--) {
            put_sentence(w, "%D");
            flush_paragraph(w);
        }
    } else if (form == 17) { /* letter */
        put_sentence(w, "%F, %w, %m %y.");
        flush_paragraph(w);
        put_sentence(w, "My dear %N,\xE2\x80\x94%E");
        for (int n = 2 + pick(w, 3); n > 0; n--)
            put_sentence(w, pick(w, 2) ? "%q." : "%E");
        put_sentence(w, "Yours, %N.");
        flush_paragraph(w);
    } else if (form == 18) { /* ledger */
        put_sentence(w, "in the %a notebook of %N stood the following:");
        flush_paragraph(w);
        for (int n = 3 + pick(w, 4); n > 0; n--) {
            put_sentence(w, "item, %u %j, %a, from %F, at %u shillings the dozen;");
            flush_paragraph(w);
        }
    } else { /* speech between two sentences of narrative */
        put_sentence(w, "%E");
        put_sentence(w, "%D");
        put_sentence(w, "%E");
        flush_paragraph(w);
    }
}

int wl_builtin_text(uint64_t seed, size_t bytes, struct km_buf *out, struct km_err *err)
{
    struct writer w = {.out = out};
    size_t start = out->len;
    wl_mt_seed(&w.r, (uint32_t)(seed ^ seed >> 32));
    for (int chapter = 1; km_buf_ok(out) && out->len - start < bytes; chapter++) {
        choose_cast(&w);
        km_buf_printf(out, "%sChapter %d. ", chapter > 1 ? "\n\n" : "", chapter);
        put_sentence(&w, pick(&w, 2) ? "the %a %n" : "%o at the %p");
        flush_paragraph(&w);
        for (int n = 20 + pick(&w, 25); n > 0 && km_buf_ok(out) && out->len - start < bytes; n--)
            put_paragraph(&w);
    }
    km_buf_free(&w.line);
    return km_buf_ok(out) ? 0 : km_fail(err, KM_ENOMEM, "out of memory for %zu bytes of built-in text", bytes);
}

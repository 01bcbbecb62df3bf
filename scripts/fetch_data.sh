#!/bin/sh
# make data: the novel that generate_multi_turn.json cuts its prompts from, Project Gutenberg's number 1184,
# into data/pg1184.txt. Whole or not at all; nothing is done when it is there.
set -eu
cd "$(dirname "$0")/.."

url=https://www.gutenberg.org/cache/epub/1184/pg1184.txt
book=data/pg1184.txt
title='The Count of Monte Cristo'

fail() {
    echo "fetch_data: $1" >&2
    exit 1
}

# The head of the file names the book, and the whole of it has 2.7 MB.
is_book() {
    [ "$(wc -c <"$1")" -gt 2000000 ] && head -c 4096 "$1" | grep -q "$title"
}

tokenizer_note() {
    echo "Qwen3's tokenizer is tokenizer.json in any Qwen3 model folder from Hugging Face: pass --tokenizer DIR."
}

if [ -f "$book" ]; then
    is_book "$book" || fail "$book is there but is not $title; move it away and run make data again"
    echo "$book is there."
    tokenizer_note
    exit 0
fi

command -v curl >/dev/null || fail "curl is missing; install it, or put $url at $book yourself"
mkdir -p data
part=$(mktemp data/.pg1184.XXXXXX)
trap 'rm -f "$part"' EXIT
trap 'exit 1' INT TERM
curl -fsSL --retry 2 --connect-timeout 15 --max-time 300 -o "$part" "$url" 2>/dev/null ||
    fail "cannot fetch $url; without a network, put the file at $book yourself, or use the built-in text"
is_book "$part" || fail "what $url sent is not $title; try again later"
chmod 644 "$part"
mv "$part" "$book"
echo "$book: $(wc -c <"$book") bytes of $title (Project Gutenberg, public domain in the United States)."
tokenizer_note

#!/bin/sh
# Downloads The Count of Monte Cristo (Project Gutenberg 1184), from which workloads/generate_multi_turn.json takes its
# prompts, to data/pg1184.txt. `make data` runs this script. An existing file is checked and kept. A failed download
# leaves no file.
set -eu
cd "$(dirname "$0")/.."

url=https://www.gutenberg.org/cache/epub/1184/pg1184.txt
book=data/pg1184.txt
title='The Count of Monte Cristo'

fail() {
    echo "fetch_data: $1" >&2
    exit 1
}

# Whether a file is the novel: its first 4 KiB have the title, and it is longer than 2 MB (the novel has 2.7 MB).
is_book() {
    [ "$(wc -c <"$1")" -gt 2000000 ] && head -c 4096 "$1" | grep -q "$title"
}

tokenizer_note() {
    echo "The workloads also need Qwen3's tokenizer.json, which every Qwen3 model folder from Hugging Face has."
    echo "Pass that folder with --tokenizer DIR."
}

if [ -f "$book" ]; then
    is_book "$book" || fail "$book exists but is not $title; move it away and run make data again"
    echo "$book is already there."
    tokenizer_note
    exit 0
fi

command -v curl >/dev/null || fail "curl is missing; install it, or download $url to $book yourself"
mkdir -p data
part=$(mktemp data/.pg1184.XXXXXX)
trap 'rm -f "$part"' EXIT
trap 'exit 1' INT TERM
curl -fsSL --retry 2 --connect-timeout 15 --max-time 300 -o "$part" "$url" 2>/dev/null ||
    fail "cannot download $url; copy the file to $book from another machine, or use the built-in text"
is_book "$part" || fail "the file at $url is not $title; try again later"
chmod 644 "$part"
mv "$part" "$book"
echo "$book: $(wc -c <"$book") bytes of $title (Project Gutenberg, public domain in the United States)."
tokenizer_note

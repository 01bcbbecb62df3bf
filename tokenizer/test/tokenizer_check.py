#!/usr/bin/env python3
"""Compares the tokenizer with Hugging Face `tokenizers` on the same tokenizer.json, token id by token id.

    pip install tokenizers
    python3 tokenizer/test/tokenizer_check.py build/tokenizer/tokenizer_check TOKENIZER.json [TEXT_FILE ...]

The texts are each file, as a whole and by lines, random Unicode strings, and strings of 1 MiB that repeat a few
characters. Every text is encoded with added tokens and as plain text, and decoded again. The exit status is 1 if
anything differs.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import time
import unicodedata

import tokenizers

SPACES = [chr(c) for c in (9, 10, 11, 12, 13, 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029,
                           0x202F, 0x205F, 0x3000)]
SHORT = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'\u017f", "'\u212a", "\u2019s", "'", "''"]
RANGES = [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x591, 0x5F4),
          (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF), (0xE00, 0xE7F), (0xF00, 0xFBC),
          (0x1000, 0x109F), (0x1100, 0x11FF), (0x1AB0, 0x1AFF), (0x1B00, 0x1B7C), (0x1DC0, 0x1DFF), (0x1E00, 0x1FFF),
          (0x2000, 0x206F), (0x20D0, 0x20F0), (0x2100, 0x218B), (0x2460, 0x24FF), (0x3040, 0x30FF), (0x3131, 0x318E),
          (0x3400, 0x3500), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFE00, 0xFE2F),
          (0xFF01, 0xFFEE), (0x105C0, 0x105F3), (0x10A00, 0x10A58), (0x11080, 0x110C2), (0x11380, 0x113E2),
          (0x11930, 0x11946), (0x16100, 0x16139), (0x16D40, 0x16D79), (0x1D100, 0x1D1E8), (0x1D400, 0x1D7FF),
          (0x1E100, 0x1E2FF), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1FAFF), (0x2F800, 0x2FA1D), (0x31350, 0x313AF),
          (0xE0000, 0xE007F)]


def random_char(rng):
    if rng.random() < 0.1:
        c = rng.randrange(1, 0x110000)  # unassigned and private code points too, but no NUL: cJSON cannot hold it
        return "?" if 0xD800 <= c < 0xE000 else chr(c)
    return chr(rng.randint(*rng.choice(RANGES)))


def random_text(rng, special):
    out, script = [], rng.choice(RANGES)
    for _ in range(rng.randint(1, 60)):
        what = rng.random()
        if what < 0.35:
            out.append(chr(rng.randint(*script)))
        elif what < 0.5:
            out.append(random_char(rng))
        elif what < 0.6:
            out.append(rng.choice(SPACES) * rng.choice((1, 1, 2, 5)))
        elif what < 0.68:
            s = rng.choice(SHORT)
            out.append(s.upper() if rng.random() < 0.3 and s.isascii() else s)
        elif what < 0.8:
            out.append("".join(rng.choice("etaoin shrdluETAOIN") for _ in range(rng.randint(1, 8))))
        elif what < 0.88:
            out.extend(chr(rng.choice((0x300, 0x301, 0x308, 0x323, 0x327, 0x345, 0x5B4, 0x94D, 0x1AC1, 0x1DFA)))
                       for _ in range(rng.randint(1, 4)))
        elif what < 0.92:
            out.append(rng.choice(special) if rng.random() < 0.8 else rng.choice(special)[:-1])
        elif what < 0.96:
            out.append(chr(rng.randint(1, 31)))
        else:
            out.append(unicodedata.normalize("NFD", random_char(rng)))
    return "".join(out)


def run_ours(program, path, mode, values):
    """Returns our result for each value, and the seconds that our library took."""
    lines = "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values)
    done = subprocess.run([program, path, mode], input=lines.encode(), capture_output=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.decode())
    return [json.loads(line) for line in done.stdout.splitlines()], float(done.stderr.split()[-2])


class Comparison:
    def __init__(self, program, path):
        self.program, self.path, self.different = program, path, 0
        whole = json.load(open(path, encoding="utf-8"))
        self.special = [a["content"] for a in whole["added_tokens"]]
        self.theirs = tokenizers.Tokenizer.from_file(path)
        # Without added tokens in the file, theirs splits their text like any other, as our encode-plain does.
        self.theirs_plain = tokenizers.Tokenizer.from_str(json.dumps({**whole, "added_tokens": []}))

    def run(self, name, texts):
        size = sum(len(t.encode()) for t in texts) / 1e6
        for mode, theirs in (("encode-plain", self.theirs_plain), ("encode", self.theirs)):
            ours, seconds = run_ours(self.program, self.path, mode, texts)
            start = time.perf_counter()
            want = [theirs.encode(t).ids for t in texts]
            their_seconds = time.perf_counter() - start
            self.report(f"{name}, {mode}", texts, want, ours)
            print(f"    {size:.2f} MB, {sum(map(len, want))} ids; ours {size / max(seconds, 1e-9):.1f} MB/s, "
                  f"theirs {size / their_seconds:.1f} MB/s; longest text {max(map(len, texts))} characters")
        ours, _ = run_ours(self.program, self.path, "decode", want)
        theirs = [self.theirs.decode(ids, skip_special_tokens=False) for ids in want]
        self.report(f"{name}, decode", texts, theirs, ours)

    def report(self, name, texts, theirs, ours):
        bad = [i for i, want in enumerate(theirs) if want != ours[i]]
        print(f"{name}: {len(texts) - len(bad)} equal, {len(bad)} different")
        self.different += len(bad)
        for i in bad[:3]:
            print("    different:", ascii(texts[i])[:300])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("program", help="build/tokenizer/tokenizer_check")
    p.add_argument("tokenizer", help="tokenizer.json")
    p.add_argument("files", nargs="*", help="UTF-8 text files")
    p.add_argument("--random", type=int, default=20000, help="number of random strings (default 20000)")
    p.add_argument("--seed", type=int, default=1, help="seed of the random strings (default 1)")
    a = p.parse_args()
    c = Comparison(a.program, a.tokenizer)
    for f in a.files:
        text = open(f, encoding="utf-8", newline="").read()
        c.run(os.path.basename(f), [text])
        c.run(os.path.basename(f) + " by lines", text.splitlines(keepends=True))
    rng = random.Random(a.seed)
    c.run("random Unicode", [random_text(rng, c.special) for _ in range(a.random)])
    mega = 1 << 20
    units = {"a": "a", "^": "^", "space": " ", "digit": "7", "newline": "\n", "a and space": "a ", "mark": "\u0301",
             "unordered marks": "\u0301\u0327", "quote": "'", "<": "<", "jamo": "\u1100\u1161\u11a8",
             "abc": "abcdefghijklmnopqrstuvwxyz", "CRLF and spaces": "\r\n  "}
    for name, unit in units.items():
        c.run(f"1 MiB of {name}", [unit * (mega // len(unit.encode()))])
    return 1 if c.different else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Prints unicode_table.h: the class of every code point in Hugging Face `tokenizers`, found by splitting and
normalizing short texts with it. The flags are those of unicode.h.

    pip install tokenizers
    python3 tokenizer/unicode_table.py > tokenizer/unicode_table.h
"""
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
SPLIT = pre_tokenizers.Split(Regex(PATTERN), "isolated")
LETTER, NUMBER, SPACE, NFC, BASE = 1, 2, 3, 4, 8
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def pieces(text):
    """The number of pieces into which the pattern splits the text."""
    return len(SPLIT.pre_tokenize_str(text))


def nfc(text):
    """The text in NFC, as Hugging Face normalizes it."""
    return normalizers.NFC().normalize_str(text)


def kind(ch):
    """The class of a character (UNI_CLASS)."""
    if pieces("a" + ch) == 1:
        return LETTER
    if ch not in "\r\n" and pieces("!!" + ch) == 1:
        return 0
    return NUMBER if pieces(ch + ch) == 2 else SPACE


flags = [0] * 0x110000
for c in CODE_POINTS:
    ch = chr(c)
    flags[c] = kind(ch)
    # NFC is set for a character that normalization changes, that has a combining class (it is sorted before U+0345,
    # whose class is the highest, 240), or that joins the Hangul syllable before it.
    if (nfc(ch) != ch or c == 0x345 or nfc("\u4e00\u0345" + ch) != "\u4e00\u0345" + ch
            or nfc("\u1100" + ch) != "\u1100" + ch or nfc("\uac00" + ch) != "\uac00" + ch):
        flags[c] |= NFC
# A pair that composes: NFC for the second character, BASE for a first character or a result past U+FFFF.
for c in CODE_POINTS:
    parts = unicodedata.decomposition(chr(c)).split()
    if len(parts) == 2 and not parts[0].startswith("<"):
        first, second = (int(p, 16) for p in parts)
        pair = chr(first) + chr(second)
        if nfc(pair) != pair:
            flags[second] |= NFC
            for base in (first, c):
                if base >= 0x10000:
                    flags[base] |= BASE

runs, last = [], 0
for c in range(0x110000):
    if flags[c] != last:
        last = flags[c]
        runs.append(f"0x{c << 4 | last:06X}")
print(f"""/* Made by unicode_table.py from tokenizers {tokenizers.__version__}; not edited by hand.
 * An entry is a run of code points with equal flags, up to the next one: first code point << 4 | flags (unicode.h). */
static const uint32_t runs[{len(runs)}] = {{""")
for i in range(0, len(runs), 11):
    print("    " + ", ".join(runs[i:i + 11]) + ",")
print("};")

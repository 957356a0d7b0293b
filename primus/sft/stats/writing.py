# SPDX-License-Identifier: Apache-2.0
"""Text as arrays of code points: the scripts of its letters, its words, its odd characters.

C: characters of a text. W: words.
"""

import functools
import sys
import unicodedata
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import regex

from primus.sft.order import random_keys

ByteArray = npt.NDArray[np.uint8]
HashArray = npt.NDArray[np.uint64]

SCRIPTS = (
    "Latin", "Han", "Hiragana", "Katakana", "Hangul", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Bengali",
    "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Tibetan",
    "Myanmar", "Khmer", "Georgian", "Armenian", "Ethiopic", "Mongolian", "Cherokee", "Syriac", "Thaana", "Bopomofo",
)  # fmt: skip
"""Scripts that are told apart, by their names in the Unicode Character Database."""

SCRIPT_NAMES = (*SCRIPTS, "Common", "Other")
"""What letters are counted as: a script, `Common` (letters of several scripts), or `Other`."""

# A character of these is a word by itself: between their words stand no spaces.
_WITHOUT_SPACES = ("Han", "Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")

_NOT_A_LETTER = 255
_SEPARATOR, _IN_WORD, _WORD = 0, 1, 2

ODD_CHARACTERS = {
    "replacement_character": r"\uFFFD",
    "byte_order_mark": r"\uFEFF",
    "control_character": r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x9F]",
    "private_use": r"\p{General_Category=Private_Use}",
}
"""Characters that have no business in a text, as patterns. Tab, line feed and carriage return are no odd ones."""

_ODD = {name: regex.compile(pattern) for name, pattern in ODD_CHARACTERS.items()}
_ANY_ODD = regex.compile("|".join(ODD_CHARACTERS.values()))


@dataclass(frozen=True, slots=True)
class CharacterTables:
    """What each code point is.

    Attributes:
        script: Index into `SCRIPT_NAMES`, or 255 for what is no letter.
        word: Whether it separates words, is in one, or is one.
        key: A pseudo-random number, for hashing.
    """

    script: ByteArray
    word: ByteArray
    key: HashArray


@functools.cache
def character_tables() -> CharacterTables:
    """The tables, made from the Unicode data of the `regex` library when first asked for."""
    num = sys.maxunicode + 1
    # A surrogate is no character; a space in its place keeps the positions.
    every = "".join(" " if 0xD800 <= point <= 0xDFFF else chr(point) for point in range(num))
    script = np.full(num, _NOT_A_LETTER, dtype=np.uint8)
    word = np.zeros(num, dtype=np.uint8)
    for match in regex.finditer(r"[\p{L}\p{M}\p{N}]+", every):
        word[match.start() : match.end()] = _IN_WORD
    letters = [match.span() for match in regex.finditer(r"\p{L}+", every)]
    for start, end in letters:
        script[start:end] = SCRIPT_NAMES.index("Other")
    for index, name in enumerate((*SCRIPTS, "Common")):
        pattern = regex.compile(rf"\p{{Script={name}}}+")
        for start, end in letters:
            for match in pattern.finditer(every, start, end):
                script[match.start() : match.end()] = index
    alone = [SCRIPT_NAMES.index(name) for name in _WITHOUT_SPACES]
    word[np.isin(script, alone)] = _WORD
    return CharacterTables(script, word, random_keys(num, seed=0, stream=0))


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The code points of a text, shape [C]."""
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def count_scripts(text: str) -> Counter[str]:
    """Count the letters of a text by script.

    Args:
        text: The text.

    Returns:
        Letters (Unicode's category L) of each script; digits, marks and emoji have none.

    Examples:
        >>> count_scripts("Hi, 世界 2!")
        Counter({'Latin': 2, 'Han': 2})
    """
    counts = np.bincount(character_tables().script[code_points(text)], minlength=len(SCRIPT_NAMES))
    return Counter({name: int(count) for name, count in zip(SCRIPT_NAMES, counts, strict=False) if count})


def words(text: str) -> HashArray:
    """The words of a text as hashes, equal for equal words whatever their case and width.

    A word is a run of letters, marks and digits; in scripts without spaces every letter is one. The text is folded
    before (NFKC and full case folding).

    Args:
        text: The text.

    Returns:
        Shape [W].

    Examples:
        >>> a, b = words("Hello, world!"), words("HELLO world")
        >>> len(a), bool((a == b).all()), len(words("你好吗"))
        (2, True, 3)
    """
    text = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    if not text:
        return np.zeros(0, dtype=np.uint64)
    tables = character_tables()
    points_C = code_points(text)
    kind_C = tables.word[points_C]
    before_C = np.concatenate([[_SEPARATOR], kind_C[:-1]])
    behind_C = np.concatenate([kind_C[1:], [_SEPARATOR]])
    starts_W = np.flatnonzero((kind_C == _WORD) | ((kind_C == _IN_WORD) & (before_C != _IN_WORD)))
    ends_W = np.flatnonzero((kind_C == _WORD) | ((kind_C == _IN_WORD) & (behind_C != _IN_WORD))) + 1
    with np.errstate(over="ignore"):
        powers, inverses = _powers(1 << (len(points_C) - 1).bit_length())
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(tables.key[points_C] * powers[: len(points_C)])])
        return mixed((sums[ends_W] - sums[starts_W]) * inverses[starts_W])


def mixed(hashes: HashArray) -> HashArray:
    """Hashes whose high bits depend on all bits (the finisher of MurmurHash3)."""
    with np.errstate(over="ignore"):
        hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
        result: HashArray = hashes ^ (hashes >> np.uint64(33))
        return result


_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)


@functools.lru_cache(maxsize=4)
def _powers(num: int) -> tuple[HashArray, HashArray]:
    """Powers of the base of the rolling hash, and of its inverse, modulo 2**64."""
    with np.errstate(over="ignore"):
        return tuple(  # type: ignore[return-value]
            np.concatenate([np.ones(1, np.uint64), np.cumprod(np.full(num, base, dtype=np.uint64))])
            for base in (_BASE, _INVERSE)
        )


def count_odd_characters(text: str) -> Counter[str]:
    r"""Count the characters of a text that have no business there.

    Args:
        text: The text.

    Returns:
        How many there are of each kind in `ODD_CHARACTERS`.

    Examples:
        >>> count_odd_characters("caf\ufffd \ufffd\x00")
        Counter({'replacement_character': 2, 'control_character': 1})
    """
    if _ANY_ODD.search(text) is None:
        return Counter()
    counts = {name: len(pattern.findall(text)) for name, pattern in _ODD.items()}
    return Counter({name: count for name, count in counts.items() if count})

# SPDX-License-Identifier: Apache-2.0
"""What the comparisons with other projects' results have in common.

T: tokens of a text.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from primus.sft.formatters import CharSpan
from primus.sft.masking import BoolArray, assistant_mask, token_spans
from primus.sft.tokenizer import Encoding, SFTTokenizer

Span = tuple[int, int]


def read_lines(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def control_text(tokenizer: SFTTokenizer, text: str) -> list[Span]:
    """Every place where a control token's text stands: what a tokenizer takes for control tokens if left alone."""
    words = sorted(tokenizer.control_tokens, key=len, reverse=True)
    return [match.span() for match in re.finditer("|".join(map(re.escape, words)), text)] if words else []


def mask_of(encoding: Encoding, spans: Sequence[Span]) -> BoolArray:
    """Which tokens lie in a span."""
    pieces = [CharSpan(start, end, kind="content", turn=0) for start, end in spans]
    return assistant_mask(token_spans(encoding.offsets_T2, pieces), len(encoding.ids_T))


def runs_of(mask_T: BoolArray) -> list[list[int]]:
    """The ranges `[first, last)` in which a mask is set."""
    steps = np.diff(np.concatenate([[0], mask_T.astype(np.int8), [0]]))
    firsts, lasts = np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist()
    return [[first, last] for first, last in zip(firsts, lasts, strict=True)]


def mask_of_runs(runs: Sequence[Sequence[int]], length: int) -> BoolArray:
    """The mask that has these runs."""
    mask_T = np.zeros(length, dtype=np.bool_)
    for first, last in runs:
        mask_T[first:last] = True
    return mask_T

# SPDX-License-Identifier: Apache-2.0
"""A faster engine for byte-level vocabularies, used only where it is proven to give the ids of `tokenizers`.

`fastokens` gives ids without offsets; a byte-level vocabulary needs no more (see `FastTokenizer`). The proof is a fixed
set of hard texts that both engines encode when the fast one is built, and one text in `CHECK_EVERY` after that.
"""

import random
from collections.abc import Callable, Iterable, Sequence

import fastokens
import numpy as np
import numpy.typing as npt

from primus.errors import EngineError
from primus.sft.tokenizer.base import IntArray

CHECK_EVERY = 1000
"""Of so many texts one is encoded again by the reference."""

Encode = Callable[[str], list[int]]
Int32Array = npt.NDArray[np.int32]


class FastEngine:
    """Ids of texts, the same as the reference's.

    Args:
        pipeline: The content of a `tokenizer.json`.
        reference: Gives the true ids of a text.
        name: Where the tokenizer came from, for messages.

    Raises:
        ValueError: If the engine does not know a part of the pipeline.
    """

    def __init__(self, pipeline: str, *, reference: Encode, name: str) -> None:
        self._tokenizer = fastokens.Tokenizer.from_json_str(pipeline)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._reference = reference
        self._name = name
        self._num_texts = 0

    def encode(self, text: str, *, index: int = 0) -> list[int]:
        """The ids of a text.

        Args:
            text: The text.
            index: Which of several texts it is, for an error.

        Returns:
            Its ids, without BOS and EOS.

        Raises:
            EngineError: If this was a text to be compared, and the reference gives other ids.
        """
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (ValueError, RuntimeError):  # a limit of its regular expressions
            return self._reference(text)
        self._num_texts += 1
        if self._num_texts % CHECK_EVERY == 0:
            self._compare(ids, text, index=index)
        return ids

    def encode_all(self, texts: Sequence[str]) -> tuple[Int32Array, IntArray]:
        """The ids of many texts, one after another.

        Args:
            texts: The texts.

        Returns:
            All ids, and where those of each text begin, with the number of all behind.

        Raises:
            EngineError: If one of them was a text to be compared, and the reference gives other ids.
        """
        try:
            packed, bounds = self._tokenizer.encode_batch_flat(list(texts), add_special_tokens=False)
        except (ValueError, RuntimeError):
            ids = [self.encode(text, index=index) for index, text in enumerate(texts)]
            first_N = np.cumsum([0, *map(len, ids)], dtype=np.int64)
            return np.array([token_id for of_text in ids for token_id in of_text], dtype=np.int32), first_N
        ids_T = np.frombuffer(packed, dtype="<i4")  # the engine's are unsigned, and far below the sign
        first_N = np.frombuffer(bounds, dtype="<u8").astype(np.int64)
        next_check = -(self._num_texts + 1) % CHECK_EVERY
        for n in range(next_check, len(texts), CHECK_EVERY):
            self._compare(ids_T[first_N[n] : first_N[n + 1]].tolist(), texts[n], index=n)
        self._num_texts += len(texts)
        return ids_T, first_N

    def _compare(self, ids: list[int], text: str, *, index: int) -> None:
        true_ids = self._reference(text)
        if ids == true_ids:
            return
        first = next((t for t, (a, b) in enumerate(zip(ids, true_ids, strict=False)) if a != b), len(true_ids))
        raise EngineError(
            f"{self._name}: the fast engine gives {len(ids)} ids and the reference {len(true_ids)}, different from"
            f" token {first} on, for a text that begins with {text[:60]!r}; report it to fastokens, and set"
            " PRIMUS_FAST_TOKENIZER=0 to go on without it",
            index=index,
        )


def proven_engine(pipeline: str, *, reference: Encode, control_tokens: Iterable[str], name: str) -> FastEngine | None:
    """The fast engine of a tokenizer, if there is one and it gives the reference's ids for every probe.

    Args:
        pipeline: The content of a `tokenizer.json`.
        reference: Gives the true ids of a text.
        control_tokens: Texts that are control tokens of the tokenizer.
        name: Where the tokenizer came from, for messages.

    Returns:
        The engine, or None.
    """
    try:
        engine = FastEngine(pipeline, reference=reference, name=name)
        is_equal = all(engine.encode(probe) == reference(probe) for probe in probes(control_tokens))
    except (ValueError, RuntimeError, OverflowError):
        return None  # a part of the pipeline that the engine does not know
    return engine if is_equal else None


def probes(control_tokens: Iterable[str]) -> Sequence[str]:
    """Hard texts, the same in every process.

    Args:
        control_tokens: Texts that are control tokens of the tokenizer; each stands in several neighbourhoods.

    Returns:
        Texts of every script, spaces of every kind, numbers, emoji, code, control tokens, and long ones.
    """
    random_number = random.Random(0)
    words = [
        "don't",
        "I'LL",
        "  x",
        "\t\ty",
        "\r\n",
        "\n\n\n",
        " \n ",
        "12345678",
        "3.14e-10",
        "a_b",
        "__init__",
        "!?...",
        "\u00a0",
    ]
    words += [
        "na\u00efve",
        "e\u0301",
        "\u1e9b\u0323",
        "\u212b",
        "\ufb01",
        "\u4f60\u597d",
        "\u3053\u3093\u306b\u3061\u306f",
        "\ud55c\uad6d\uc5b4",
    ]
    words += [
        "\u041f\u0440\u0438\u0432\u0435\u0442",
        "\u0645\u0631\u062d\u0628\u0627",
        "\u05e9\u05dc\u05d5\u05dd",
        "\u0928\u092e\u0938\u094d\u0924\u0947",
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
        "\u0660\u0661",
        "\u00b2\u00bd",
        "\u2167",
    ]
    words += [
        "\U0001f44d\U0001f3fd",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u200b",
        "\ufeff",
        "\u2028",
        "\x00",
        "\x7f",
        "\ue000",
        "\U000fffff",
    ]
    words += [
        "<|",
        "|>",
        "<think>",
        "</think>",
        '<tool_call>\n{"a": 1}\n</tool_call>',
        "def f(x):\n    return x\n",
        "https://a.b/c?d=e&f",
    ]
    controls = sorted(control_tokens)
    texts = ["", " ", "\n", "a", *words, *(f"{left} {right}" for left in words for right in words[:8])]
    texts += [f"a{control}b {control}\n{control}{control} " for control in controls[:300]]
    for length in (10, 100, 1000):
        for _ in range(8):
            parts = [random_number.choice(words) for _ in range(length)]
            parts += random_number.choices(controls, k=length // 20) if controls else []
            random_number.shuffle(parts)
            texts.append(random_number.choice(["", " "]).join(parts))
    texts += ["".join(chr(_code_point(random_number)) for _ in range(200)) for _ in range(50)]
    texts += ["a" * 3000, " " * 3000, "\n" * 1000, "ab " * 2000, "\u4f60" * 2000, "9" * 500]
    return texts


def _code_point(random_number: random.Random) -> int:
    code = random_number.choice(
        [random_number.randrange(0x20, 0x250), random_number.randrange(0x3000), random_number.randrange(0x110000)]
    )
    return code if not 0xD800 <= code < 0xE000 else 0x20

# SPDX-License-Identifier: Apache-2.0
"""What can be said about a tokenizer before any row is read: what it keeps, what it adds, what it takes for control."""

from dataclasses import asdict, dataclass
from typing import Any

from primus.sft.formatters import ConversationFormatter
from primus.sft.tokenizer import SFTTokenizer

# What a tokenizer may lose, each as a text that shows it.
PROBES = {
    "words": "The quick brown fox doesn't jump over 12,345.67 lazy dogs!",
    "spaces": "a  b   c    d",
    "newlines": "a\n\nb\r\nc\n",
    "tabs": "a\tb\t\tc",
    "leading space": " a",
    "trailing space": "a ",
    "case": "Hello WORLD",
    "accents": "caf\u00e9 na\u00efve \u00fcber",
    "combining marks (NFC)": "cafe\u0301",
    "compatibility characters (NFKC)": "\ufb01 \u00b2 \uff21",
    "Chinese, Japanese, Korean": "\u4f60\u597d \u3053\u3093\u306b\u3061\u306f \uc548\ub155",
    "Arabic, Hebrew": "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "Hindi, Thai": "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "emoji": "\U0001f44d\U0001f3fd \U0001f469\u200d\U0001f469\u200d\U0001f467",
    "code": "def f(x):\n    return {'a': [x ** 2]}\n",
    "control characters": "a\x00b\x07c",
    "the symbol of a space (U+2581)": "a\u2581b",
}


@dataclass(frozen=True, slots=True)
class TokenizerVerdict:
    """What a tokenizer is like, and whether it fits a format.

    Attributes:
        name: Where the tokenizer came from.
        vocab_size: Rows that an embedding needs.
        bos_token: Text of BOS; empty if there is none.
        eos_token: Text of EOS; empty if there is none.
        puts_bos: Whether a training sequence begins with a BOS that the format does not write itself.
        writes_bos: Whether the format writes BOS itself where it wants one.
        markers: The format's markers; True if the tokenizer has a single control token for one.
        ends_with_eos: Whether the marker that ends a turn is the tokenizer's EOS, at which servers stop unasked.
        lost: Probes that do not come back as they are, with what comes back; empty for a lossless tokenizer.
        fingerprint: Hash of everything that the ids depend on.
    """

    name: str
    vocab_size: int
    bos_token: str
    eos_token: str
    puts_bos: bool
    writes_bos: bool
    markers: dict[str, bool]
    ends_with_eos: bool
    lost: dict[str, str]
    fingerprint: str

    @property
    def problems(self) -> list[str]:
        """What is wrong, one line each."""
        return [
            f"{self.name}: {marker!r} is no single control token, so the model reads and writes it as text; use a"
            " tokenizer with the format's tokens, or another format"
            for marker, is_control in self.markers.items()
            if not is_control
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for a JSON file."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The verdict for people."""
        single = [marker for marker, is_control in self.markers.items() if is_control]
        where = "put in front of a sequence" if self.puts_bos else "not put in front of a sequence"
        bos = f"BOS {_quoted(self.bos_token)}, {'left to the format' if self.writes_bos else where}"
        lines = [
            f"tokenizer {self.name}",
            f"  {self.vocab_size:,} ids; offsets are usable",
            f"  {bos}; EOS {_quoted(self.eos_token)}",
            f"  single control tokens: {', '.join(map(repr, single)) or 'none of the markers of the format'}",
        ]
        if not self.ends_with_eos and single:
            lines.append("  the end of a turn is not EOS: servers must be told to stop there (export-hf does)")
        if not self.lost:
            lines.append(f"  lossless: all {len(PROBES)} probes come back as they are")
        for probe, text in self.lost.items():
            lines.append(f"  loses {probe}: {PROBES[probe]!r} comes back as {text!r}")
        return lines


def judge_tokenizer(tokenizer: SFTTokenizer, formatter: ConversationFormatter, *, puts_bos: bool) -> TokenizerVerdict:
    """Try a tokenizer on probes and on the markers of a format.

    Args:
        tokenizer: The tokenizer; loading it has tried its offsets.
        formatter: The format.
        puts_bos: Whether a training sequence begins with a BOS that the format does not write itself.

    Returns:
        The verdict.
    """
    bos = next((text for text, token_id in tokenizer.control_tokens.items() if token_id == tokenizer.bos_id), "")
    markers = list(formatter.control_markers)
    given_back = {probe: tokenizer.given_back(text) for probe, text in PROBES.items()}
    return TokenizerVerdict(
        name=tokenizer.name,
        vocab_size=tokenizer.vocab_size,
        bos_token=bos,
        eos_token=tokenizer.eos_token,
        puts_bos=puts_bos,
        writes_bos=formatter.writes_bos,
        markers={marker: marker in tokenizer.control_tokens for marker in markers},
        ends_with_eos=bool(markers) and tokenizer.control_tokens.get(markers[-1]) == tokenizer.eos_id,
        lost={probe: text for probe, text in given_back.items() if text != PROBES[probe]},
        fingerprint=tokenizer.fingerprint,
    )


def _quoted(token: str) -> str:
    return repr(token) if token else "none"

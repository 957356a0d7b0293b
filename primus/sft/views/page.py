# SPDX-License-Identifier: Apache-2.0
"""One page for a browser that shows rows token by token; it needs nothing but itself.

The frame is a template with everything escaped. The rows are JSON in it, from which the page's script makes text nodes,
never markup. The page's own policy allows the browser only this style and this script, by their hashes, and no request.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from primus.sft.views.conversation_view import ConversationView


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that can't be shown.

    Attributes:
        origin: Where the row stands.
        message: Why it can't be shown.
    """

    origin: str
    message: str


def render_page(
    rows: Sequence[ConversationView | RowProblem],
    *,
    title: str = "What is trained",
    facts: Iterable[tuple[str, str]] = (),
    max_seq_length: int | None = None,
) -> str:
    """The page of some rows.

    Args:
        rows: The rows, in the order in which they are shown.
        title: The page's title.
        facts: What is true of all rows, such as the tokenizer, each with its name.
        max_seq_length: Positions of a training sequence, if there is such a limit.

    Returns:
        HTML, the same for the same rows.
    """
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none';"
        " form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    document = {"max_seq_length": max_seq_length, "rows": [_row(row) for row in rows]}
    return _template().render(
        title=title,
        facts=list(facts),
        policy=policy,
        style=Markup(style),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704 - a file of this package
        data=Markup(embedded_json(document)),  # noqa: S704 - see there
    )


def embedded_json(value: Any) -> str:
    r"""JSON that may stand inside a `script` element, whatever strings are in it.

    Args:
        value: Plain data.

    Returns:
        JSON without any character that HTML or JavaScript gives a meaning; it parses to the same data.

    Examples:
        >>> print(embedded_json({"said": "</script>"}))
        {"said":"\u003c/script\u003e"}
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _row(row: ConversationView | RowProblem) -> dict[str, Any]:
    """A row as plain data; a token's end counts from its start, and its start from the one before."""
    if isinstance(row, RowProblem):
        return {"origin": row.origin, "problem": row.message}
    starts = row.offsets_T2[:, 0].tolist()
    return {
        "origin": row.origin,
        "text": row.text,
        "ids": row.ids_T.tolist(),
        "steps": [start - before for before, start in zip([0, *starts], starts, strict=False)],
        "widths": (row.offsets_T2[:, 1] - row.offsets_T2[:, 0]).tolist(),
        "weights": [(_short(weight), len(list(run))) for weight, run in groupby(row.weights_T.tolist())],
        "kinds": [(kind, len(list(run))) for kind, run in groupby(row.kinds)],
        "sections": [
            {"turn": s.turn, "role": s.role, "first": s.first, "last": s.last, "notes": s.notes} for s in row.sections
        ],
        "bytes": {token: data.hex(" ").upper() for token, data in row.bytes.items()},
        "names": row.special_names,
        "cut": row.cut,
        "notes": row.notes,
    }


def _short(weight: float) -> float:
    """A 32 bit number in as many digits as tell it from its neighbours."""
    return float(f"{weight:.7g}")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(_asset("page.html.jinja"))

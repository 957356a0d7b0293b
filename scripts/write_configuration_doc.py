#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the table of keys in docs/CONFIGURATION.md anew, from the schema. Run it after a change of the schema."""

from pathlib import Path

from primus.config.reference import keys_as_markdown

DOC = Path(__file__).parents[1] / "docs" / "CONFIGURATION.md"
BEGIN = "<!-- keys: written by scripts/write_configuration_doc.py -->\n"


def with_keys(text: str) -> str:
    """Return the text of the document with the table of the present schema at its end."""
    before, mark, _ = text.partition(BEGIN)
    if not mark:
        raise SystemExit(f"{DOC}: has no line {BEGIN.strip()!r}; put it where the table begins")
    return f"{before}{mark}\n{keys_as_markdown()}"


if __name__ == "__main__":
    DOC.write_text(with_keys(DOC.read_text(encoding="utf-8")), encoding="utf-8")

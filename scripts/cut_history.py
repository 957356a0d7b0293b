# SPDX-License-Identifier: Apache-2.0
"""Keep the last question and answer of each conversation: python scripts/cut_history.py SOURCE TARGET.jsonl."""

import json
import sys
from pathlib import Path

from primus.chat import read_rows


def main() -> None:
    """Write the shortened conversations."""
    source, target = map(Path, sys.argv[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with part.open("w", encoding="utf-8") as file:
        for row in read_rows(source):
            file.write(json.dumps({"messages": row.value["messages"][-2:]}, ensure_ascii=False) + "\n")
    part.replace(target)


if __name__ == "__main__":
    main()

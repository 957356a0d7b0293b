# SPDX-License-Identifier: Apache-2.0
"""The chat templates that stand beside the formatters, rendered as transformers does."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

import primus.sft.formatters

Render = Callable[..., str]


@pytest.fixture(scope="session")
def render_template() -> Render:
    """Renders `<name>.jinja`."""
    folder = Path(primus.sft.formatters.__file__).parent

    def render(name: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        template = (folder / f"{name}.jinja").read_text(encoding="utf-8")
        rendered, _ = render_jinja_template([list(messages)], chat_template=template, **variables)
        return str(rendered[0])

    return render

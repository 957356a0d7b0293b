# SPDX-License-Identifier: Apache-2.0
"""Results of other projects, and what made them; each is skipped by name where it is not there."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from primus.sft.tokenizer import SFTTokenizer, load_tokenizer

LoadShared = Callable[[str], SFTTokenizer]
RenderWithSpans = Callable[..., tuple[str, list[tuple[int, int]]]]


@pytest.fixture(scope="session")
def oracles_dir(shared_dir: Path) -> Path:
    return shared_dir / "oracles"


@pytest.fixture(scope="session")
def shared_tokenizer(shared_dir: Path) -> LoadShared:
    """Loads `<name>/tokenizer.json`, or `<name>/<file>`, of the shared tokenizers."""

    @cache
    def load(name: str) -> SFTTokenizer:
        path = shared_dir / "tokenizers" / name
        return load_tokenizer(path if path.suffix else path / "tokenizer.json")

    return load


@pytest.fixture(scope="session")
def render_trl_template() -> RenderWithSpans:
    """Renders a chat template of the trl package, with the spans of `{% generation %}`."""
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the chat templates of trl: pip install --no-deps 'trl==1.16.0'")
    folder = Path(spec.submodule_search_locations[0]) / "chat_templates"

    def render(name: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> tuple[str, list[tuple[int, int]]]:
        template = (folder / f"{name}.jinja").read_text(encoding="utf-8")
        rendered, spans = render_jinja_template(
            [list(messages)],
            chat_template=template,
            return_assistant_tokens_mask="generation %}" in template,
            **variables,
        )
        return str(rendered[0]), [tuple(span) for span in spans[0]] if spans else []

    return render

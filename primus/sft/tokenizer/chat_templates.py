# SPDX-License-Identifier: Apache-2.0
"""The chat templates that come with a tokenizer: in `tokenizer_config.json`, or in files beside it."""

import json
from pathlib import Path
from typing import Any

from primus.errors import TokenizerError
from primus.sft.tokenizer.base import SFTTokenizer

DEFAULT = "default"
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""The places in a tokenizer's folder, in the order in which transformers heeds them."""

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def templates_in_folder(folder: Path) -> dict[str, str]:
    """Read the chat templates of a tokenizer's folder.

    Args:
        folder: The folder.

    Returns:
        The templates by name; those in `additional_chat_templates/` besides the first place that has any.

    Raises:
        TokenizerError: If a file can't be read, or holds something else than templates.
    """
    found: dict[str, str] = {}
    for name in TEMPLATE_FILES:
        path = folder / name
        if found or not path.is_file():
            continue
        if path.suffix == ".jinja":
            found = {DEFAULT: _read(path)}
        else:
            content = _read_json(path)
            found = templates_of(content.get("chat_template"), place=str(path))
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _read(path)
    return found


def templates_of(value: Any, *, place: str) -> dict[str, str]:
    """The templates by name, of a value of `chat_template`: a text, a mapping, or a list of named templates.

    Args:
        value: The value; None for no template.
        place: Where it stands, for the message.

    Returns:
        The templates by name.

    Raises:
        TokenizerError: If it is none of these.

    Examples:
        >>> templates_of([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}], place="here")
        {'default': 'a', 'tool_use': 'b'}
    """
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list) and all(
        isinstance(item, dict) and item.keys() >= {"name", "template"} for item in value
    ):
        value = {item["name"]: item["template"] for item in value}
    if isinstance(value, dict) and all(isinstance(text, str) for item in value.items() for text in item):
        return dict(value)
    raise TokenizerError(f"{place}: chat_template is neither a text nor named texts; repair it")


def named_tokens(config: Path, tokenizer: SFTTokenizer) -> dict[str, str]:
    """Texts of special tokens by the names that chat templates have for them.

    Args:
        config: A `tokenizer_config.json`; it may be absent.
        tokenizer: The tokenizer, whose BOS and EOS are taken where the file has none.

    Returns:
        The texts.
    """
    known = {token_id: text for text, token_id in tokenizer.control_tokens.items()}
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    tokens = {name: known[token_id] for name, token_id in ids.items() if token_id in known}
    content = _read_json(config) if config.is_file() else {}
    for name in _TOKEN_NAMES:
        token = content.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            tokens[name] = text
    return tokens


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise TokenizerError(f"{path}: can't be read ({exc}); repair it") from exc


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path))
    except json.JSONDecodeError as exc:
        raise TokenizerError(f"{path}: is not JSON ({exc}); repair it") from exc
    if not isinstance(content, dict):
        raise TokenizerError(f"{path}: is not a JSON object; repair it, or put the tokenizer elsewhere")
    return content

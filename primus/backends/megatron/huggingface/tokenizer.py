# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of an exported model, with the chat template that it was trained with."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

import primus.sft.formatters
from primus.errors import CheckpointError, TokenizerError
from primus.sft.formatters import IM_END, NAMED_FORMATTERS, TEMPLATE, TemplateFormatter
from primus.sft.tokenizer import SFTTokenizer, load_tokenizer
from primus.sft.tokenizer.chat_templates import DEFAULT, templates_of

logger = logging.getLogger(__name__)

UNTRAINED = "none"
"""The conversation format in the facts of a model that was imported and not trained yet."""

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
_TEMPLATE_FILE, _TEMPLATE_FOLDER = "chat_template.jinja", "additional_chat_templates"
_NO_EXACT_FORM = (
    "{source}: a SentencePiece model has no exact form in transformers; pass --tokenizer FOLDER, a Hugging Face"
    " tokenizer with the same vocabulary"
)
_PROBE = (
    {"role": "user", "content": "Hello, it's 12345 o'clock.\n\n caf\u00e9 \u4f60\u597d \U0001f44d"},
    {"role": "assistant", "content": "Yes."},
)


def chat_template(conversation_format: str, *, add_bos: bool) -> str:
    """The text of the chat template of a conversation format, as formatters render it.

    Args:
        conversation_format: A name that `create_formatter` knows, but for `template`, whose templates are in the
            checkpoint.
        add_bos: Whether training sequences begin with the tokenizer's BOS, which the format does not write.

    Returns:
        Jinja, for `apply_chat_template`.
    """
    name = conversation_format if conversation_format in {"alpaca", *NAMED_FORMATTERS} else "chatml"
    text = Path(primus.sft.formatters.__file__).with_name(f"{name}.jinja").read_text(encoding="utf-8")
    return "{{- bos_token -}}" + text if add_bos else text


def end_of_turn(conversation_format: str, *, tokenizer: SFTTokenizer, templates: Mapping[str, str]) -> str:
    """The text that ends an assistant turn; empty if the format leaves that to an EOS that the tokenizer lacks."""
    if conversation_format == TEMPLATE:
        formatter = TemplateFormatter(
            templates[DEFAULT], control_tokens=tokenizer.control_tokens, special_tokens=tokenizer.special_tokens
        )
        return formatter.end_of_turn
    if conversation_format in NAMED_FORMATTERS:
        return NAMED_FORMATTERS[conversation_format].end_of_turn
    return tokenizer.eos_token if conversation_format == "alpaca" else IM_END


def write_tokenizer(source: str, *, output: Path, tokenizer: SFTTokenizer, templates: Mapping[str, str]) -> None:
    """Write a folder that `AutoTokenizer` loads, and check that it does what training did.

    Args:
        source: Where the tokenizer comes from: a folder, a `tokenizer.json`, or a name for `AutoTokenizer`.
        output: The folder, which exists.
        tokenizer: The same tokenizer, as training used it.
        templates: The chat templates by name; `default` is the usual one.

    Raises:
        TokenizerError: If the source cannot be made a folder of that kind. A chat that gets other ids than in training
            is a warning.
    """
    path = Path(source)
    if path.is_dir() and (path / "tokenizer_config.json").exists():
        for name in _FILES:
            if (path / name).exists():
                shutil.copyfile(path / name, output / name)
    elif path.suffix == ".model" or (path.is_dir() and not (path / "tokenizer.json").exists()):
        raise TokenizerError(_NO_EXACT_FORM.format(source=source))
    elif path.exists():
        _save_bare(path / "tokenizer.json" if path.is_dir() else path, output=output, tokenizer=tokenizer)
    else:
        AutoTokenizer.from_pretrained(source).save_pretrained(output)
    shutil.rmtree(output / _TEMPLATE_FOLDER, ignore_errors=True)  # those that training did not use
    (output / _TEMPLATE_FILE).write_text(templates[DEFAULT], encoding="utf-8")
    for name, text in templates.items():
        if name != DEFAULT:
            (output / _TEMPLATE_FOLDER).mkdir(exist_ok=True)
            (output / _TEMPLATE_FOLDER / f"{name}.jinja").write_text(text, encoding="utf-8")
    _rewrite_config(output / "tokenizer_config.json")
    _check(output, tokenizer=tokenizer, templates=templates)


def load_fitting(source: str, *, vocab_size: int) -> SFTTokenizer:
    """Load a tokenizer, each of whose ids has a row in the embedding.

    Args:
        source: A folder, a file, or a name for `AutoTokenizer`.
        vocab_size: Rows of the embedding that stand for a token.

    Returns:
        The tokenizer.

    Raises:
        TokenizerError: If it cannot be loaded.
        CheckpointError: If it has more ids than there are rows.
    """
    tokenizer = load_tokenizer(source)
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{source}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model's embedding has "
            f"{vocab_size} rows; pass the tokenizer that the model was trained with"
        )
    return tokenizer


def copy_tokenizer(source: str, *, output: Path, tokenizer: SFTTokenizer) -> None:
    """Copy the tokenizer of a model that was not trained here, with whatever chat template it has.

    Args:
        source: A folder, a `tokenizer.json`, or a name for `AutoTokenizer`.
        output: The folder, which exists.
        tokenizer: The same tokenizer.

    Raises:
        TokenizerError: If the source is a SentencePiece file.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".model":
        raise TokenizerError(_NO_EXACT_FORM.format(source=source))
    if path.is_file():
        _save_bare(path, output=output, tokenizer=tokenizer)
    elif not path.is_dir():
        AutoTokenizer.from_pretrained(source).save_pretrained(output)
    else:
        for name in (*_FILES, _TEMPLATE_FILE):
            if (path / name).exists():
                shutil.copyfile(path / name, output / name)
        if (path / _TEMPLATE_FOLDER).is_dir():
            shutil.copytree(path / _TEMPLATE_FOLDER, output / _TEMPLATE_FOLDER)


def _save_bare(tokenizer_file: Path, *, output: Path, tokenizer: SFTTokenizer) -> None:
    """Save a tokenizer.json as a folder, with the special tokens that training read from it."""
    names = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    texts = {token_id: text for text, token_id in tokenizer.control_tokens.items()}
    special = {name: texts[token_id] for name, token_id in names.items() if token_id in texts}
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), **special).save_pretrained(output)


def _rewrite_config(path: Path) -> None:
    """Take out the template of the pretrained model, and name a class that every release of transformers has."""
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _check(folder: Path, *, tokenizer: SFTTokenizer, templates: Mapping[str, str]) -> None:
    exported = AutoTokenizer.from_pretrained(folder)
    text: str = exported.apply_chat_template(_PROBE, tokenize=False)
    if templates_of(exported.chat_template, place=str(folder)) != templates:
        raise TokenizerError(f"{folder}: transformers reads another chat template than was written; report this")
    ids = exported(text, add_special_tokens=False)["input_ids"]
    markers = [
        (start, start + len(control)) for control in tokenizer.control_tokens for start in _occurrences(text, control)
    ]
    trained_ids = tokenizer.encode(text, markers=sorted(markers)).ids_T.tolist()
    if ids != trained_ids:
        logger.warning(
            "%s: in transformers this tokenizer gives %d ids for a chat that is %d in training; answers may suffer",
            tokenizer.name,
            len(ids),
            len(trained_ids),
        )


def _occurrences(text: str, part: str) -> list[int]:
    starts, start = [], text.find(part)
    while start >= 0:
        starts.append(start)
        start = text.find(part, start + len(part))
    return starts

# SPDX-License-Identifier: Apache-2.0
"""Finds the engine for a tokenizer, and refuses one whose offsets can't be trusted."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from tokenizers import Tokenizer

from primus.errors import TokenizerError
from primus.sft.tokenizer.base import SFTTokenizer
from primus.sft.tokenizer.byte_level import ByteLevelTokenizer
from primus.sft.tokenizer.chat_templates import named_tokens, templates_in_folder, templates_of
from primus.sft.tokenizer.fast import FastTokenizer
from primus.sft.tokenizer.plain_object import ObjectTokenizer
from primus.sft.tokenizer.sentencepiece_model import SentencePieceTokenizer

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token")
_PROBE = "Hello, world! It's 12345 o'clock.\n\n  caf\u00e9 \u4f60\u597d \U0001f44d\U0001f3fd end"


def load_tokenizer(source: str | Path | object) -> SFTTokenizer:
    """Load a tokenizer of any kind.

    Args:
        source: A folder or hub name for `AutoTokenizer`; a `tokenizer.json` (BOS, EOS and pad are read from a
            `tokenizer_config.json` beside it); a SentencePiece `.model`; a tokenizer of `transformers`, `tokenizers`,
            `sentencepiece` or `tiktoken`; or any object that can encode and decode.

    Returns:
        The tokenizer, with offsets that have been tried on a probe.

    Raises:
        TokenizerError: If there is no such tokenizer, it is damaged, or its offsets can't be trusted.
    """
    tokenizer = _from_path(str(source)) if isinstance(source, str | Path) else _from_object(source)
    _check_offsets(tokenizer)
    return tokenizer


def _from_path(source: str) -> SFTTokenizer:
    path = Path(source)
    tokenizer = _from_place(source, path)
    folder = path if path.is_dir() else path.parent
    if path.exists() and not tokenizer.chat_templates:
        tokenizer.chat_templates = templates_in_folder(folder)
    if path.exists() and not tokenizer.special_tokens:
        tokenizer.special_tokens = named_tokens(folder / "tokenizer_config.json", tokenizer)
    return tokenizer


def _from_place(source: str, path: Path) -> SFTTokenizer:
    if path.is_dir():
        if (path / "tokenizer_config.json").exists() or (path / "config.json").exists():
            return _auto(source)
        for name in ("tokenizer.json", "tokenizer.model"):
            if (path / name).exists():
                return _from_file(path / name)
        raise TokenizerError(f"{source}: the folder holds no tokenizer.json, tokenizer.model or tokenizer_config.json")
    if path.is_file():
        return _from_file(path)
    if path.suffix in {".json", ".model"} or not _HUB_NAME.fullmatch(source):
        raise TokenizerError(f"{source}: no such file or folder; check tokenizer_model (paths start at {Path.cwd()})")
    return _auto(source)


def _from_file(path: Path) -> SFTTokenizer:
    name = str(path)
    try:
        if path.suffix == ".model":
            return SentencePieceTokenizer(path.read_bytes(), name=name)
        text = path.read_text(encoding="utf-8")
        if '"model"' not in text:
            raise TokenizerError(f"{name}: is not a tokenizer.json (it has no model); name another file")
        config_path = path.with_name("tokenizer_config.json")
        config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.exists() else {}
        if not isinstance(config, dict):
            raise TokenizerError(f"{config_path}: is not a JSON object; repair it, or put the tokenizer elsewhere")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise TokenizerError(f"{name}: can't be read as a tokenizer ({exc}); name a tokenizer.json or .model") from exc
    return _fast(text, name=name, **{key: _token_text(config.get(key)) for key in _SPECIAL_NAMES})


def _fast(pipeline: str, *, name: str, **options: Any) -> FastTokenizer:
    try:
        return FastTokenizer(pipeline, name=name, **options)
    except Exception as exc:
        if type(exc) is not Exception:  # the Rust library raises bare Exceptions, and nothing else does
            raise
        raise TokenizerError(f"{name}: the tokenizers library refuses it ({exc}); name another file") from exc


def _token_text(token: Any) -> str | None:
    """A token of `tokenizer_config.json`: its text, or a mapping that holds it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _auto(source: str) -> SFTTokenizer:
    # transformers takes seconds to import, and tokenizer.json and .model files do without it.
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        # Left to its default, a tokenizer that comes with code of its own makes transformers ask on the terminal.
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, StrictDataclassError) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise TokenizerError(
            f"{source}: AutoTokenizer can't load it ({reason}); name a folder, a tokenizer.json or a .model file"
        ) from exc
    return _from_object(tokenizer, name=source)


def _from_object(source: Any, name: str | None = None) -> SFTTokenizer:
    if isinstance(source, SFTTokenizer):
        return source
    tokenizer = _engine_for(source, name)
    tokenizer.chat_templates = templates_of(_attribute(source, "chat_template"), place=tokenizer.name)
    special = _attribute(source, "special_tokens_map")
    if isinstance(special, dict):
        tokenizer.special_tokens = {key: text for key, text in special.items() if isinstance(text, str)}
    return tokenizer


def _attribute(source: Any, name: str) -> Any:
    try:
        return getattr(source, name, None)
    except (NotImplementedError, KeyError):  # Megatron's base class raises for what a tokenizer lacks
        return None


def _engine_for(source: Any, name: str | None) -> SFTTokenizer:
    name = name or str(getattr(source, "name_or_path", "") or type(source).__name__)
    if isinstance(source, Tokenizer):
        return _fast(source.to_str(), name=name)
    if isinstance(source, sentencepiece.SentencePieceProcessor):
        return SentencePieceTokenizer(source.serialized_model_proto(), name=name)
    backend = getattr(source, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        special = {key: _token_text(getattr(source, key)) for key in _SPECIAL_NAMES}
        return _fast(backend.to_str(), name=name, extra_control_tokens=tuple(source.all_special_tokens), **special)
    if hasattr(source, "encode_ordinary") and hasattr(source, "decode_tokens_bytes"):
        return ByteLevelTokenizer(source)
    return ObjectTokenizer(source, name=name)


def _check_offsets(tokenizer: SFTTokenizer) -> None:
    """Refuse a tokenizer whose offsets do not walk through a plain text (as in tokenizers issue 1553)."""
    offsets_T2 = tokenizer.encode(_PROBE).offsets_T2
    covered = np.zeros(len(_PROBE), dtype=bool)
    for start, end in offsets_T2:
        covered[start:end] = True
    letters = [i for i, character in enumerate(_PROBE) if character.isascii() and character.isalnum()]
    missing = [i for i in letters if not covered[i]]
    widest = int((offsets_T2[:, 1] - offsets_T2[:, 0]).max(initial=0))
    if missing or widest > len(_PROBE) // 2:
        raise TokenizerError(
            f"{tokenizer.name}: its offsets can't be trusted (of {len(letters)} letters {len(missing)} belong to no"
            " token,"
            f" and a token spans {widest} characters); update the tokenizers library or the tokenizer file"
        )

# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from primus.chat import Conversation, parse_conversation
from primus.errors import ConfigError, TokenizerError
from primus.sft.formatters import TemplateFormatter, create_formatter
from primus.sft.tokenizer import load_tokenizer

DEMO_TOKENIZER = Path(__file__).parents[5] / "examples" / "data" / "demo-tokenizer"
TEMPLATE = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
OTHER = TEMPLATE.replace(": ", "> ")
ROW = parse_conversation({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
WITH_TOOLS = parse_conversation({"tools": [{"name": "add"}], "messages": [{"role": "assistant", "content": "b"}]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer without a chat template."""
    target = tmp_path / "tokenizer"
    target.mkdir()
    shutil.copyfile(DEMO_TOKENIZER / "tokenizer.json", target / "tokenizer.json")
    configure(target, eos_token="<|im_end|>", tokenizer_class="PreTrainedTokenizerFast")
    return target


def configure(folder: Path, **keys: object) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**config, **keys}))


def text(source: object, *, row: Conversation = ROW) -> str:
    return create_formatter("template", tokenizer=load_tokenizer(source)).render(row).text


@pytest.mark.parametrize("name", ["tokenizer.json", ""])
@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja", "chat_template.json"])
def test_the_template_comes_from_beside_the_tokenizer(folder: Path, place: str, name: str) -> None:
    if place.endswith("config.json"):
        configure(folder, chat_template=TEMPLATE)
    elif place.endswith(".jinja"):
        configure(folder, chat_template=OTHER)  # the file goes first
        (folder / place).write_text(TEMPLATE)
    else:
        (folder / place).write_text(json.dumps({"chat_template": TEMPLATE}))
    assert text(folder / name) == "user: a<|im_end|>assistant: b<|im_end|>"


@pytest.mark.parametrize("name", ["tokenizer.json", ""])
def test_conversations_with_tools_have_a_template_of_their_own(folder: Path, name: str) -> None:
    named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": OTHER}]
    configure(folder, chat_template=named)
    assert text(folder / name) == "user: a<|im_end|>assistant: b<|im_end|>"
    assert text(folder / name, row=WITH_TOOLS) == "assistant> b<|im_end|>"


def test_the_template_of_a_tokenizer_object_is_taken(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    assert text(tokenizer) == tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenize=False
    )


def test_a_file_goes_before_the_tokenizers_template(folder: Path, tmp_path: Path) -> None:
    configure(folder, chat_template=OTHER)
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    formatter = create_formatter("template", tokenizer=tokenizer, template=tmp_path / "t.jinja")
    assert isinstance(formatter, TemplateFormatter)
    assert formatter.source == TEMPLATE


def test_a_missing_template_says_where_it_was_looked_for(folder: Path) -> None:
    message = r"tokenizer\.json: has no chat template \(looked in its tokenizer_config\.json, chat_template\.jinja and"
    with pytest.raises(ConfigError, match=message):
        text(folder / "tokenizer.json")
    configure(folder, chat_template={"rag": TEMPLATE})
    with pytest.raises(ConfigError, match="of its templates rag none is the default"):
        text(folder / "tokenizer.json")


@pytest.mark.parametrize("value", [3, [1], [{"name": "default"}], {"default": 1}])
def test_a_damaged_template_is_refused_with_its_place(folder: Path, value: object) -> None:
    configure(folder, chat_template=value)
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: chat_template is neither a text nor named texts"):
        load_tokenizer(folder / "tokenizer.json")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^sft_chat_template: .*none.jinja can't be read \(.*\); name a file"):
        create_formatter("template", template=tmp_path / "none.jinja")
    with pytest.raises(ConfigError, match=r"^sft_chat_template: is not set"):
        create_formatter("template")


def test_a_template_belongs_to_its_format() -> None:
    with pytest.raises(ConfigError, match=r"^sft_chat_template: is for sft_conversation_format: template"):
        create_formatter("openai", template="t.jinja")
    with pytest.raises(ConfigError, match=r"is for sft_conversation_format: template, and that is 'llama3'"):
        create_formatter("llama3", template_kwargs={"enable_thinking": False})


def test_special_tokens_have_the_names_of_the_configuration(folder: Path) -> None:
    configure(folder, bos_token={"content": "<|im_start|>"}, unk_token=None)
    assert load_tokenizer(folder / "tokenizer.json").special_tokens == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
    }

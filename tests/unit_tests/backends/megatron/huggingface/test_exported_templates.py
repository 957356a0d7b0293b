# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from primus.backends.megatron.huggingface.tokenizer import chat_template, end_of_turn, write_tokenizer
from primus.chat import Conversation, Message
from primus.errors import RenderError
from primus.sft.formatters import NAMED_FORMATTERS, create_formatter
from primus.sft.formatters.template import render_template, template_messages
from primus.sft.tokenizer import load_tokenizer

DEMO_TOKENIZER = Path(__file__).parents[5] / "examples" / "data" / "demo-tokenizer"
TALKS = [
    "u a",
    "s u a",
    "u a u a u a",
    "s u a u a",
    "s u a u a u a",
]
ROLES = {"s": "system", "u": "user", "a": "assistant"}
ENDING_IN_EOS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize("name", sorted(NAMED_FORMATTERS))
@pytest.mark.parametrize("talk", TALKS)
def test_the_template_of_a_named_format_writes_what_is_trained_and_what_is_asked(name: str, talk: str) -> None:
    messages = tuple(
        Message(ROLES[letter], f" Text {number}:\n it's <b>. \n")  # type: ignore[arg-type]
        for number, letter in enumerate(talk.split())
    )
    formatter, source = create_formatter(name), chat_template(name, add_bos=True)
    conversation = Conversation(messages)
    rendered = formatter.render(conversation)
    assert render_template(source, template_messages(messages), special_tokens={}) == rendered.text
    for turn, message in enumerate(messages):
        if message.role == "assistant":
            before = template_messages(messages[:turn])
            prompt = render_template(source, before, add_generation_prompt=True, special_tokens={})
            assert prompt == formatter.render_prompt(conversation, turn).text


@pytest.mark.parametrize(("name", "marker"), [("llama3", "<|eot_id|>"), ("phi", "<|end|>"), ("openai", "<|im_end|>")])
def test_a_model_stops_at_the_end_of_turn_of_its_format(name: str, marker: str) -> None:
    tokenizer = load_tokenizer(DEMO_TOKENIZER)
    assert end_of_turn(name, tokenizer=tokenizer, templates={}) == marker


def test_a_model_trained_with_a_template_stops_at_what_the_template_writes_last() -> None:
    tokenizer = load_tokenizer(DEMO_TOKENIZER)
    assert tokenizer.eos_token
    assert end_of_turn("template", tokenizer=tokenizer, templates={"default": ENDING_IN_EOS}) == tokenizer.eos_token


def test_the_templates_of_training_are_those_of_the_exported_folder(tmp_path: Path) -> None:
    templates = {"default": ENDING_IN_EOS, "tool_use": "{{ tools | tojson }}" + ENDING_IN_EOS}
    write_tokenizer(str(DEMO_TOKENIZER), output=tmp_path, tokenizer=load_tokenizer(DEMO_TOKENIZER), templates=templates)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == templates
    assert dict(load_tokenizer(tmp_path).chat_templates) == templates
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_an_exported_folder_has_one_template_again_when_training_had_one(tmp_path: Path) -> None:
    write_tokenizer(
        str(DEMO_TOKENIZER), output=tmp_path, tokenizer=load_tokenizer(DEMO_TOKENIZER), templates={"default": "{{ 1 }}"}
    )
    assert dict(load_tokenizer(tmp_path).chat_templates) == {"default": "{{ 1 }}"}
    with pytest.raises(RenderError, match="writes nothing of"):
        create_formatter("template", tokenizer=load_tokenizer(tmp_path)).render(
            Conversation((Message("user", "a"), Message("assistant", "b")))
        )

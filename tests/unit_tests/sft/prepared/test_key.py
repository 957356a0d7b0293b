# SPDX-License-Identifier: Apache-2.0
"""The key of a data set covers all that its bytes depend on, and says what differs."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import primus.sft.prepared.key
from primus.chat.conversations import SourceOptions
from primus.chat.formats import ColumnMap
from primus.sft.options import EncodingOptions
from primus.sft.prepared import differences, plan_preparation
from primus.sft.recipe import Recipe
from primus.sft.shards import ShardJob
from primus.sft.weighting import TurnSchedule
from tests.unit_tests.sft.prepared.conftest import TOKENIZER, make_job, write_conversations

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
OPTIONS: dict[str, Any] = {
    "supervise_end_of_turn": False,
    "supervise_turns": "last",
    "truncation": "right",
    "bad_rows": "error",
    "add_bos": False,
    "add_eos": True,
    "schedule": TurnSchedule(kind="last_only"),
    "loss_normalizer": "turn",
    "loss_weight": 0.5,
}
SOURCE: dict[str, Any] = {
    "format": "openai",
    "messages_field": "chat",
    "roles": {"client": "user"},
    "oasst": "best",
    "think": "split",
    "column_map": ColumnMap.from_mapping({"prompt": "q", "response": "a"}, origin="map"),
    "conversation_id": "id",
}
RECIPE: dict[str, Any] = {"conversation_format": "alpaca", "max_seq_length": 301}
JOB: dict[str, Any] = {"outcome": "validation", "validation_fraction": 0.25}
# These two are read from the source options.
SAID_OF_ROWS = {"messages_field", "source_format"}
Change = Callable[[ShardJob], ShardJob]


def of_options(**changes: Any) -> Change:
    return lambda job: replace(job, recipe=replace(job.recipe, options=replace(job.recipe.options, **changes)))


def of_source(**changes: Any) -> Change:
    return lambda job: replace(job, recipe=replace(job.recipe, source=replace(job.recipe.source, **changes)))


def of_recipe(**changes: Any) -> Change:
    return lambda job: replace(job, recipe=replace(job.recipe, **changes))


def of_job(**changes: Any) -> Change:
    return lambda job: replace(job, **changes)


CHANGES: dict[str, Change] = {
    **{f"options.{name}": of_options(**{name: value}) for name, value in OPTIONS.items()},
    **{f"rows.{name}": of_source(**{name: value}) for name, value in SOURCE.items()},
    "format.name": of_recipe(conversation_format="alpaca"),
    "seq_length": of_recipe(max_seq_length=301),
    **{name: of_job(**{name: value}) for name, value in JOB.items()},
}


def test_every_field_of_a_job_is_tried_here() -> None:
    assert {f.name for f in fields(EncodingOptions)} == {*OPTIONS, *SAID_OF_ROWS}, "add the new option above"
    assert {f.name for f in fields(SourceOptions)} == {*SOURCE}
    said_otherwise = {"loaded"}  # the fingerprint says it
    tried_below = {"files", "tokenizer", "chat_template", "chat_template_kwargs", "source", "options"} | said_otherwise
    assert {f.name for f in fields(Recipe)} == {*RECIPE, *tried_below}
    assert {f.name for f in fields(ShardJob)} == {*JOB, "recipe"}


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_changes_the_key_and_is_named(conversations: Path, name: str) -> None:
    job = make_job(conversations)
    before, after = plan_preparation(job), plan_preparation(CHANGES[name](job))
    assert before.key != after.key
    named = [line.partition(":")[0] for line in differences(before.facts, after.facts)]
    assert named, name
    assert all(one == name or one.startswith(f"{name}.") for one in named), named


def test_the_same_job_has_the_same_key_and_no_differences(conversations: Path) -> None:
    first, second = (plan_preparation(make_job(conversations)) for _ in range(2))
    assert first.key == second.key
    assert differences(first.facts, second.facts) == []


def test_content_and_name_and_order_of_the_files_change_the_key(tmp_path: Path) -> None:
    a, b = (write_conversations(tmp_path / f"{name}.jsonl", seed=seed) for seed, name in enumerate("ab"))
    plan = plan_preparation(make_job(a, b))
    [line] = differences(plan.facts, plan_preparation(make_job(b, a)).facts)
    assert line.startswith("sources in order: [")
    size = a.stat().st_size
    a.write_bytes(a.read_bytes().replace(b"zebras", b"gibbon"))
    changed = plan_preparation(make_job(a, b))
    assert changed.key != plan.key
    assert differences(plan.facts, changed.facts) == [
        f"sources {a}: the content changed ({size:,} bytes -> {size:,} bytes)"
    ]


def test_another_tokenizer_changes_the_key_but_not_another_place_of_the_same(
    conversations: Path, tmp_path: Path
) -> None:
    job = make_job(conversations)
    key = plan_preparation(job).key
    copy = tmp_path / "tokenizer.json"
    copy.write_bytes(Path(TOKENIZER).read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes(Path(TOKENIZER).with_name("tokenizer_config.json").read_bytes())
    moved = replace(job, recipe=replace(job.recipe, tokenizer=str(copy)))
    assert plan_preparation(moved).key == key
    pipeline = json.loads(copy.read_text())
    vocabulary = pipeline["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    copy.write_text(json.dumps(pipeline))
    assert plan_preparation(moved).key != key


def test_template_and_its_variables_change_the_key(conversations: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"

    def facts(template: str, **variables: Any) -> dict[str, Any]:
        file.write_text(template)
        recipe = replace(
            make_job(conversations).recipe,
            conversation_format="template",
            chat_template=str(file),
            chat_template_kwargs=variables,
        )
        return plan_preparation(ShardJob(recipe)).facts

    plain = facts(TEMPLATE)
    assert [line.partition(":")[0] for line in differences(plain, facts(TEMPLATE + " "))] == [
        "format.templates.default"
    ]
    assert differences(plain, facts(TEMPLATE, think=True)) == [
        "format.variables: {} -> not set",
        "format.variables.think: not set -> True",
    ]
    dated = facts(TEMPLATE + "{{ strftime_now('%Y') }}")
    assert "date" in dated["format"]
    assert "date" not in plain["format"]


@pytest.mark.parametrize("version", ["FORMAT_VERSION", "__version__"])
def test_another_version_changes_the_key(conversations: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan_preparation(make_job(conversations)).key
    monkeypatch.setattr(primus.sft.prepared.key, version, 99)
    assert plan_preparation(make_job(conversations)).key != before

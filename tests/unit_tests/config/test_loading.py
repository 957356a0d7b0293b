# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.config import describe_keys, load_config
from primus.config.places import EXAMPLE_CONFIGS
from primus.errors import ConfigError
from tests.unit_tests.config.conftest import RUN, Problems, Write


def test_a_good_configuration_has_typed_values_from_every_layer() -> None:
    config = load_config("run.yaml")
    assert (config.work_group, config.user_name, config.exp_name) == ("primus", "user", "test")
    assert config.exp_dir == Path("output/primus/user/test")
    trainer = config.trainer
    assert (trainer.lr, trainer.seq_length, trainer.tokenizer_model) == (1e-3, 64, "tokenizer")
    assert (trainer.hidden_size, trainer.untie_embeddings_and_output_weights) == (128, False)  # the model preset
    assert (trainer.lr_decay_style, trainer.sft_supervise_end_of_turn) == ("cosine", True)  # the trainer preset
    assert trainer.kv_channels is None  # the schema


def test_later_layers_win(write: Write) -> None:
    write("mine_trainer.yaml", "seed: 1\nlr_warmup_iters: 1\nclip_grad: 1\nmin_lr: 1e-6\n")
    write("mine_model.yaml", "extends: tiny_llama.yaml\nlr_warmup_iters: 2\nclip_grad: 2\nmin_lr: 2e-6\n")
    text = RUN.replace("sft_trainer.yaml", "mine_trainer.yaml").replace("tiny_llama.yaml", "mine_model.yaml")
    write("run.yaml", text + "      clip_grad: 3\n      min_lr: 3e-6\n")
    trainer = load_config("run.yaml", overrides=["min_lr=4e-6"]).trainer
    assert (trainer.seed, trainer.lr_warmup_iters, trainer.clip_grad, trainer.min_lr) == (1, 2, 3.0, 4e-6)


def test_the_command_line_sets_keys_of_every_place() -> None:
    overrides = [
        "exp_name=other",
        "workspace=/out",
        "model=llama3_8B.yaml",
        "lora.dim=8",
        "lora={alpha: 16}",
        "lr=1",
        "lr=2",
    ]
    config = load_config("run.yaml", overrides=overrides)
    assert config.exp_dir == Path("/out/primus/user/other")
    assert config.trainer.hidden_size == 4096
    assert (config.trainer.lora.dim, config.trainer.lora.alpha) == (8, 16.0)
    assert config.trainer.lr == 2.0


def test_a_null_of_a_later_layer_wins_too() -> None:
    trainer = load_config("run.yaml", overrides=["train_iters=null", "sft_num_epochs=2"]).trainer
    assert (trainer.train_iters, trainer.sft_num_epochs) == (None, 2.0)


@given(lr=st.floats(0, 1e3), iters=st.integers(1, 10**9), name=st.text("abz-_.09é ", min_size=3).map(str.strip))
def test_an_override_reads_back_as_what_was_written(lr: float, iters: int, name: str) -> None:
    config = load_config(EXAMPLE_CONFIGS / "tiny-multiturn-sft.yaml", overrides=[
        f"lr={lr!r}", "min_lr=0", f"train_iters={iters}", "lr_warmup_iters=0", f"sft_dataset_split=x{name}",
    ])  # fmt: skip
    assert (config.trainer.lr, config.trainer.train_iters, config.trainer.sft_dataset_split) == (lr, iters, f"x{name}")


KEYS = st.sampled_from([*(key.name for key in describe_keys()), "model", "config", "lora", "modules", "unknown", ""])
VALUES = st.one_of(
    st.text("0123456789.e-+_truefalsnabc[]{},:'\"$~ \n\0\u00e9", max_size=12),
    st.sampled_from(["null", "true", "-1", "0", "1e400", "nan", "[1]", "[[]]", "{a: 1}", "{dim: x}", "[null]", "${}"]),
    st.text(max_size=5),
)


@given(st.lists(st.tuples(KEYS, VALUES).map("=".join) | st.text(max_size=5), max_size=4))
def test_any_command_line_gives_a_configuration_or_problems(overrides: list[str]) -> None:
    try:
        load_config(EXAMPLE_CONFIGS / "tiny-multiturn-sft.yaml", overrides=overrides)
    except ConfigError as error:
        problems = error.problems
    else:
        return
    assert problems
    assert all("; " in problem for problem in problems)


def test_the_configuration_cannot_be_changed() -> None:
    config = load_config("run.yaml")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.trainer.lr = 1.0  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.trainer.lora.dim = 1  # type: ignore[misc]


def test_a_bare_name_is_found_in_the_working_folder_and_then_among_the_examples(write: Write) -> None:
    assert load_config("tiny-multiturn-sft.yaml").exp_name == os.environ.get("PRIMUS_EXP_NAME", "tiny-multiturn-sft")
    write("tiny-multiturn-sft.yaml", RUN.replace("test", "mine"))
    assert load_config("tiny-multiturn-sft.yaml").exp_name == "mine"


def test_a_path_is_not_looked_for_among_the_examples(problems: Problems) -> None:
    assert problems(path="./sub/tiny-multiturn-sft.yaml") == [
        "configuration: there is no file 'tiny-multiturn-sft.yaml' in 'sub'; there is no .yaml file"
    ]


def test_a_missing_configuration_is_refused_with_the_nearest_name(problems: Problems) -> None:
    assert problems(path="tiny-multiturn.yaml") == [
        (
            f"configuration: there is no file 'tiny-multiturn.yaml' in '.' or in '{EXAMPLE_CONFIGS}'; "
            "did you mean 'tiny-multiturn-sft.yaml'?"
        )
    ]


def test_a_preset_is_found_beside_the_file_that_names_it_first(write: Write) -> None:
    write("deep/tiny_llama.yaml", "extends: llama3_8B.yaml\nnum_layers: 1\n")
    write("deep/run.yaml", RUN)
    assert load_config("deep/run.yaml").trainer.num_layers == 1
    assert load_config("run.yaml").trainer.num_layers == 3
    write("top.yaml", "extends: deep/run.yaml\n")
    assert load_config("top.yaml").trainer.num_layers == 1


def test_missing_presets_are_refused_together(write: Write, problems: Problems) -> None:
    write("run.yaml", RUN.replace("sft_trainer", "dpo_trainer").replace("tiny_llama", "tiny_lama"))
    trainer, model = problems()
    assert trainer.startswith("run.yaml:4: config: there is no file 'dpo_trainer.yaml' in '.' or in '")
    assert trainer.endswith("presets/trainers'; did you mean 'sft_trainer.yaml'?")
    assert model.startswith("run.yaml:5: model: there is no file 'tiny_lama.yaml' in '.' or in '")
    assert model.endswith("presets/models'; did you mean 'tiny_llama.yaml'?")


def test_without_a_model_preset_every_missing_key_is_named(write: Write, problems: Problems) -> None:
    write("run.yaml", RUN.replace("    model: tiny_llama.yaml\n", "").replace("      lr: 1e-3\n", ""))
    advice = (
        "name a model preset in the module, for example `model: llama3_8B.yaml`, or a Hugging Face folder with hf_path,"
        " or set it under `overrides`"
    )
    assert sorted(problems()) == sorted(
        [
            f"run.yaml: {key}: is missing; {advice}"
            for key in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
        ]
        + ["run.yaml: lr: is missing; set it under `overrides`"]
    )


def test_a_missing_name_of_the_experiment_is_refused(write: Write, problems: Problems) -> None:
    write("run.yaml", RUN.replace("exp_name: test\n", ""))
    assert problems() == ["run.yaml: exp_name: is missing; set it at the top level of the file"]


def test_there_is_one_trainer_module(write: Write, problems: Problems) -> None:
    rule = "modules: there must be one module with 'trainer' in its name, and there is"
    write("run.yaml", "exp_name: a\nmodules:\n  pre_trainer: {}\n  post_trainer: {}\n")
    assert problems() == [
        f"run.yaml:3: {rule}: pre_trainer (run.yaml:3), post_trainer (run.yaml:4); keep one, for example post_trainer"
    ]
    write("run.yaml", "exp_name: a\n")
    assert problems() == [f"run.yaml: {rule}: none; keep one, for example post_trainer"]
    write("run.yaml", "exp_name: a\nmodules:\n  evaluator: {}\n")
    assert problems() == [
        "run.yaml:3: modules.evaluator: unknown module; the one module has 'trainer' in its name",
        f"run.yaml:3: {rule}: none; keep one, for example post_trainer",
    ]


def test_what_must_be_a_mapping_is_refused_otherwise(write: Write, problems: Problems) -> None:
    write("run.yaml", RUN.partition("    overrides")[0] + "    overrides: 8\n")
    assert problems()[0] == "run.yaml:6: modules.post_trainer.overrides: 8 is not a mapping; write its keys below it"
    write("run.yaml", "exp_name: a\nmodules: [a]\n")
    assert problems()[0] == "run.yaml:2: modules: ['a'] is not a mapping; write its keys below it"


def test_overrides_may_be_empty(write: Write) -> None:
    write("run.yaml", RUN.partition("    overrides")[0] + "    overrides:\n")
    given = [line.strip().replace(": ", "=") for line in RUN.partition("overrides:\n")[2].splitlines()]
    assert load_config("run.yaml", overrides=given).trainer.seq_length == 64


@pytest.mark.parametrize("override", ["lr", "=1", ".lr=1", "lora.=1", ""])
def test_an_override_that_is_not_key_and_value_is_refused(problems: Problems, override: str) -> None:
    assert problems(override) == [
        f"command line: '{override}' is not key=value; write for example lr=1e-5 or lora.dim=8"
    ]


def test_an_override_with_a_broken_list_is_refused(problems: Problems) -> None:
    (problem,) = problems("sft_dataset_name=[a")
    assert problem.startswith("command line: sft_dataset_name: '[a' is not valid YAML at column 3: ")
    assert problem.endswith("; check indentation and quotes")


def test_all_problems_are_reported_at_once(write: Write, problems: Problems) -> None:
    write(
        "run.yaml",
        RUN.replace("lr: 1e-3", "lr: fast").replace("exp_name: test", "exp_nam: test")
        + "      num_layer: 2\n      min_lr: 1\n      micro_batch_size: 3\n      load: ${NOT_SET_ANYWHERE}\n",
    )
    found = [problem.partition("; ")[0] for problem in problems("lr_warmup_iters=20", "seq_length=0", "oops")]
    assert found == [
        "command line: 'oops' is not key=value",
        "run.yaml:1: exp_nam: unknown key",
        "run.yaml:13: num_layer: unknown key",
        "run.yaml: exp_name: is missing",
        "run.yaml:16: load: the environment variable NOT_SET_ANYWHERE is not set",
        "command line: seq_length: 0 is not greater than 0",
        "run.yaml:11: lr: 'fast' is not a number",
        "run.yaml:10: global_batch_size: 4 is not divisible by micro_batch_size, 3",
        "command line: lr_warmup_iters: 20 is not less than train_iters, 10",
    ]


def test_every_problem_is_one_line(write: Write) -> None:
    write("run.yaml", RUN + "      sft_messages_field: {a: |\n        b\n        c\n      }\n")
    with pytest.raises(ConfigError) as caught:
        load_config("run.yaml")
    assert all("\n" not in problem for problem in caught.value.problems)

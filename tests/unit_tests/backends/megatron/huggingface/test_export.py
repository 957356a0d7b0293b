# SPDX-License-Identifier: Apache-2.0
"""A checkpoint becomes a folder that transformers takes as it is, with the same logits."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from megatron.core import dist_checkpointing
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from primus.backends.megatron.checkpoint.folder import RunFacts, finish_folder
from primus.backends.megatron.distributed import joined_processes, seed_weights, this_process
from primus.backends.megatron.huggingface import export
from primus.backends.megatron.huggingface.config import model_config, special_token_ids
from primus.backends.megatron.huggingface.export import export_hf
from primus.backends.megatron.huggingface.tokenizer import chat_template
from primus.backends.megatron.huggingface.weights import ModelShape, to_hugging_face
from primus.backends.megatron.model.gpt import build_model
from primus.backends.megatron.planning.parameter_count import HeadLayout, padded_vocab_size
from primus.chat.parse import parse_conversation
from primus.config.schema import ModelKeys, TrainerConfig
from primus.errors import CheckpointError, TokenizerError
from primus.sft.formatters import create_formatter
from primus.sft.tokenizer import load_tokenizer

CHECKOUT = Path(__file__).parents[5]
DEMO_TOKENIZER = CHECKOUT / "examples/data/demo-tokenizer"
VOCAB_SIZE = 1030

MegatronModel: TypeAlias = Any  # megatron-core has no types

TINY: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 32,
    "ffn_hidden_size": 80,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "max_position_embeddings": 512,
    "rotary_base": 5000.0,
    "init_method_std": 0.1,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "tied": ("LlamaForCausalLM", {"untie_embeddings_and_output_weights": False}),
    "every head its own keys": ("LlamaForCausalLM", {"num_query_groups": None}),
    "wide heads": ("LlamaForCausalLM", {"kv_channels": 16}),
    "llama 3.1": (
        "LlamaForCausalLM",
        {"use_rope_scaling": True, "rope_scaling_factor": 4.0, "max_position_embeddings": 32768},
    ),
    "qwen 2": ("Qwen2ForCausalLM", {"add_qkv_bias": True, "norm_epsilon": 1e-6}),
    "qwen 3": ("Qwen3ForCausalLM", {"qk_layernorm": True, "kv_channels": 16}),
    "qwen 3 with biases": ("Qwen3ForCausalLM", {"qk_layernorm": True, "add_qkv_bias": True}),
}


def trainer_of(**model: object) -> TrainerConfig:
    return TrainerConfig(**{**TINY, **model}, seq_length=64, global_batch_size=1, lr=1e-4)


def model_keys(trainer: TrainerConfig) -> ModelKeys:
    return ModelKeys(**{name: getattr(trainer, name) for name in ModelKeys.model_fields})


@contextmanager
def gpt_model(trainer: TrainerConfig, *, vocab_size: int = VOCAB_SIZE) -> Iterator[MegatronModel]:
    """GPTModel as training builds it; norms and biases are moved from ones and zeros, so that each of them matters."""
    process = this_process()
    with joined_processes(process, trainer):
        seed_weights(7)
        num_rows = padded_vocab_size(vocab_size, divisible_by=128, tensor_parallel=1)
        model = build_model(trainer, padded_vocab_size=num_rows, device=process.device)[0].module.eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or "bias" in name:
                    parameter += 0.3 * torch.randn_like(parameter)
        yield model


def some_tokens(*, length: int = 40) -> Tensor:
    return torch.randint(0, VOCAB_SIZE, (2, length), generator=torch.Generator().manual_seed(3))


def logits_of(model: MegatronModel, tokens_BS: Tensor) -> Tensor:
    with torch.no_grad():
        logits_BSV: Tensor = model(tokens_BS, None, None)
    return logits_BSV[..., :VOCAB_SIZE].float()


def write_checkpoint(save: Path, trainer: TrainerConfig, *, tokenizer: str, **facts: object) -> Path:
    """Save a model as training does, without an optimizer; gives the folder of the checkpoint."""
    with gpt_model(trainer) as model:
        partial = save / "partial"
        partial.mkdir(parents=True)
        dist_checkpointing.save(model.sharded_state_dict(), str(partial))
        torch.save(logits_of(model, some_tokens()), save / "logits.pt")
    run: dict[str, Any] = {
        "iteration": 20,
        "consumed_samples": 20,
        "model": model_keys(trainer),
        "vocab_size": VOCAB_SIZE,
        "padded_vocab_size": 1152,
        "tokenizer_model": tokenizer,
        "sft_conversation_format": "openai",
        "add_bos": False,
        "params_dtype": "float32",
        "use_distributed_optimizer": False,
        "data_fingerprint": "none",
        "seed": 1,
        "global_batch_size": 1,
        "sft_length_bucket": 0,
    }
    return finish_folder(partial, save=save, run=RunFacts(**{**run, **facts}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run's checkpoints: one of a Qwen2-like model with the demo's tokenizer."""
    save = tmp_path_factory.mktemp("run") / "checkpoints"
    trainer = trainer_of(add_qkv_bias=True, untie_embeddings_and_output_weights=False)
    write_checkpoint(save, trainer, tokenizer=str(DEMO_TOKENIZER))
    return save


@pytest.fixture(scope="module")
def exported(saved: Path) -> Path:
    output = saved.parent / "exported"
    export_hf(saved, output=output)
    return output


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_of_every_architecture_are_those_of_megatron(name: str) -> None:
    architecture, keys = ARCHITECTURES[name]
    trainer = trainer_of(**keys)
    model_keys_of_run, tokens_BS = model_keys(trainer), some_tokens(length=300)
    with gpt_model(trainer) as model:
        expected_BSV = logits_of(model, tokens_BS)
        state = {name: weight for name, weight in model.state_dict().items() if isinstance(weight, Tensor)}
    weights: dict[str, Tensor] = {}
    for megatron_name, weight in state.items():
        weights |= to_hugging_face(
            megatron_name,
            weight,
            shape=ModelShape.of(model_keys_of_run, vocab_size=VOCAB_SIZE),
            tied=not trainer.untie_embeddings_and_output_weights,
        )
    if keys.get("qk_layernorm") and keys.get("add_qkv_bias"):
        weights |= export._output_projection_biases(weights)
    ids = special_token_ids(bos_id=None, eos_id=1, end_of_turn_id=2, pad_id=0)
    config = model_config(model_keys_of_run, vocab_size=VOCAB_SIZE, params_dtype="float32", token_ids=ids)
    assert config["architectures"] == [architecture]
    transformers_model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
    missing, unexpected = transformers_model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config["tie_word_embeddings"] else set())
    with torch.no_grad():
        torch.testing.assert_close(transformers_model(tokens_BS).logits, expected_BSV, atol=1e-4, rtol=0)


def test_transformers_loads_the_folder_and_computes_the_same(saved: Path, exported: Path) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    with torch.no_grad():
        logits_BSV = model.eval()(some_tokens()).logits
    torch.testing.assert_close(logits_BSV, torch.load(saved / "logits.pt", weights_only=True), atol=1e-4, rtol=0)


def test_generation_ends_at_the_end_of_turn_token(exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = AutoModelForCausalLM.from_pretrained(exported).eval()
    assert end_of_turn in torch.tensor([GenerationConfig.from_pretrained(exported).eos_token_id]).flatten()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        # The model knows nothing; with this row it writes the end-of-turn token whatever it reads.
        model.lm_head.weight.zero_()
        model.lm_head.weight[end_of_turn] = 0
        bias = torch.zeros(VOCAB_SIZE)
        bias[end_of_turn] = 1
        model.lm_head.bias = torch.nn.Parameter(bias)
    answer = model.generate(**prompt, max_new_tokens=20)[0, prompt["input_ids"].size(1) :]
    assert answer.tolist() == [end_of_turn]


def test_folder_holds_what_loaders_look_for(exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    config = json.loads((exported / "config.json").read_text())
    assert config["vocab_size"] == VOCAB_SIZE
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5000.0
    assert AutoConfig.from_pretrained(exported).rope_parameters == {"rope_type": "default", "rope_theta": 5000.0}
    assert not [path for path in exported.parent.iterdir() if path.name.startswith(f".{exported.name}")]


def test_scaled_rotary_settings_are_written_for_old_and_new_readers() -> None:
    ids = special_token_ids(bos_id=0, eos_id=1, end_of_turn_id=1, pad_id=0)
    keys = model_keys(trainer_of(use_rope_scaling=True, rotary_base=500000.0))
    config = model_config(keys, vocab_size=VOCAB_SIZE, params_dtype="bfloat16", token_ids=ids)
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert config["rope_scaling"] == llama3
    assert config["rope_theta"] == 500000.0
    assert config["rope_parameters"] == {**llama3, "rope_theta": 500000.0}
    assert AutoConfig.for_model(**config).rope_parameters == {**llama3, "rope_theta": 500000.0}


def test_files_are_cut_at_the_limit_and_indexed(
    saved: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "MAX_FILE_BYTES", 60_000)
    export_hf(saved, output=tmp_path / "cut")
    index = json.loads((tmp_path / "cut/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    whole = AutoModelForCausalLM.from_pretrained(exported).state_dict()
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "cut").state_dict()
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_one_iteration_folder_exports_as_well(saved: Path, tmp_path: Path) -> None:
    export_hf(saved / "iter_0000020", output=tmp_path / "out", tokenizer=str(DEMO_TOKENIZER))
    assert (tmp_path / "out/model.safetensors").is_file()


def test_a_folder_that_is_not_empty_is_left_alone(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(CheckpointError, match=r"the folder is not empty; name another one, or pass --force"):
        export_hf(saved, output=tmp_path)
    with pytest.raises(CheckpointError, match=r"is no export \(it has no \.primus-export\), so --force does not"):
        export_hf(saved, output=tmp_path, force=True)
    with pytest.raises(CheckpointError, match=r"mine: is a file; name a folder"):
        export_hf(saved, output=tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"


def test_force_replaces_an_earlier_export_whole(saved: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    export_hf(saved, output=output)
    (output / "leftover").write_text("")
    export_hf(saved, output=output, force=True)
    assert not (output / "leftover").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_export_leaves_nothing(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no-such-tokenizer.*--tokenizer names one that has moved since training"):
        export_hf(saved, output=tmp_path / "out", tokenizer="./no-such-tokenizer/")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_with_more_ids_than_rows_is_refused(tmp_path: Path, saved: Path) -> None:
    run = json.loads((saved / "iter_0000020/run.json").read_text())
    broken = tmp_path / "iter_0000020"
    broken.mkdir()
    (broken / "run.json").write_text(json.dumps({**run, "vocab_size": 900}))
    with pytest.raises(CheckpointError, match=r"has ids up to 1023, the model's embedding has 900 rows"):
        export_hf(broken, output=tmp_path / "out")


def test_a_tokenizer_that_gives_other_ids_is_refused(tmp_path: Path, saved: Path) -> None:
    run = json.loads((saved / "iter_0000020/run.json").read_text())
    folder = tmp_path / "iter_0000020"
    folder.mkdir()
    for path in (saved / "iter_0000020").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "run.json").unlink()
    (folder / "run.json").write_text(json.dumps({**run, "tokenizer_fingerprint": "other"}))
    with pytest.raises(
        CheckpointError, match=r"gives other ids than the one of training \(fingerprint \w+, and the run"
    ):
        export_hf(folder, output=tmp_path / "out")
    own = load_tokenizer(DEMO_TOKENIZER).fingerprint
    (folder / "run.json").write_text(json.dumps({**run, "tokenizer_fingerprint": own}))
    export_hf(folder, output=tmp_path / "out")


def test_a_folder_without_tensors_is_no_checkpoint(tmp_path: Path, saved: Path) -> None:
    broken = tmp_path / "iter_0000020"
    broken.mkdir()
    (broken / "run.json").write_text((saved / "iter_0000020/run.json").read_text())
    with pytest.raises(CheckpointError, match=r"iter_0000020: is no checkpoint that can be read"):
        export_hf(broken, output=tmp_path / "out")


def shape_of(**heads: int) -> ModelShape:
    return ModelShape(heads=HeadLayout(**heads), hidden_size=8, ffn_hidden_size=16, vocab_size=4)


def test_a_weight_of_another_family_is_refused() -> None:
    shape = shape_of(num_attention_heads=2, num_query_groups=1, kv_channels=2)
    with pytest.raises(CheckpointError, match=r"mlp\.experts\.0: no Hugging Face model of the Llama family has such"):
        to_hugging_face("decoder.layers.0.mlp.experts.0", torch.zeros(2), shape=shape, tied=False)


def test_fused_rows_are_taken_apart_group_by_group() -> None:
    rows = torch.tensor([0, 1, 20, 30, 2, 3, 21, 31])[:, None]  # q0 q1 k0 v0 | q2 q3 k1 v1
    parts = to_hugging_face(
        "decoder.layers.4.self_attention.linear_qkv.weight",
        rows,
        shape=shape_of(num_attention_heads=4, num_query_groups=2, kv_channels=1),
        tied=False,
    )
    assert {name: part[:, 0].tolist() for name, part in parts.items()} == {
        "model.layers.4.self_attn.q_proj.weight": [0, 1, 2, 3],
        "model.layers.4.self_attn.k_proj.weight": [20, 21],
        "model.layers.4.self_attn.v_proj.weight": [30, 31],
    }


CHATS: dict[str, dict[str, Any]] = {
    "plain": {
        "messages": [
            {"role": "user", "content": " Hi \n"},
            {"role": "assistant", "content": "\nHello <b>&'\"\u00e9\u4f60"},
            {"role": "user", "content": ""},
            {"role": "assistant", "content": ""},
        ]
    },
    "system": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "system", "content": "Now in German."},
            {"role": "assistant", "content": [{"type": "text", "text": "Hal"}, {"type": "text", "text": "lo"}]},
        ]
    },
    "tools and calls": {
        "tools": [{"type": "function", "function": {"name": "add", "description": "<sums> \u00e9"}}, {"name": "b"}],
        "messages": [
            {"role": "system", "content": "Use tools."},
            {"role": "user", "content": "1+2?"},
            {
                "role": "assistant",
                "content": "Let me see.",
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "add", "arguments": '{"a": "\u00e9<"}'},
                    },
                    {"id": "2", "type": "function", "function": {"name": "b", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "3"},
            {"role": "tool", "tool_call_id": "2", "content": ""},
            {"role": "assistant", "content": "3", "reasoning_content": "easy"},
        ],
    },
    "tools without a system turn, calls without content": {
        "tools": [{"type": "function", "function": {"name": "add"}}],
        "messages": [
            {"role": "user", "content": "1+2?"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "hm",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
            },
        ],
    },
    "tools and an empty system turn": {
        "tools": [{"type": "function", "function": {"name": "add"}}],
        "messages": [{"role": "system", "content": ""}, {"role": "assistant", "content": "x"}],
    },
}


@pytest.mark.parametrize("name", CHATS)
def test_the_chat_template_renders_what_the_formatter_trains(name: str) -> None:
    row = CHATS[name]
    rendered = create_formatter("openai").render(parse_conversation(row, origin="row"))
    tokenizer = AutoTokenizer.from_pretrained(DEMO_TOKENIZER)
    template = chat_template("openai", add_bos=False)
    text = tokenizer.apply_chat_template(
        row["messages"], tools=row.get("tools"), chat_template=template, tokenize=False
    )
    assert text == rendered.text
    prompt = tokenizer.apply_chat_template(
        row["messages"], tools=row.get("tools"), chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert prompt == rendered.text + "<|im_start|>assistant\n"


def test_the_alpaca_template_renders_what_the_formatter_trains() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_TOKENIZER)
    template = chat_template("alpaca", add_bos=False)
    formatter = create_formatter("alpaca", eos_token=tokenizer.eos_token)
    for system in ([], [{"role": "system", "content": "Be brief."}], [{"role": "system", "content": ""}]):
        messages = [*system, {"role": "user", "content": "Add 1."}, {"role": "assistant", "content": "2"}]
        rendered = formatter.render(parse_conversation({"messages": messages}, origin="row"))
        assert tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False) == rendered.text
        prompt = tokenizer.apply_chat_template(
            messages[:-1], chat_template=template, tokenize=False, add_generation_prompt=True
        )
        assert rendered.text.startswith(prompt)
        assert rendered.text[len(prompt) :] == f"2{tokenizer.eos_token}"


def test_a_bare_tokenizer_file_becomes_a_folder(tmp_path: Path, saved: Path) -> None:
    bare = tmp_path / "tokenizer.json"
    bare.write_bytes((DEMO_TOKENIZER / "tokenizer.json").read_bytes())
    export_hf(saved, output=tmp_path / "out", tokenizer=str(bare))
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    text = "<|im_start|>user\nHi<|im_end|>\n"
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"]
    assert ids == load_tokenizer(bare).encode(text, markers=[(0, 12), (19, 29)]).ids_T.tolist()


@pytest.fixture(scope="module")
def exported_with_other_special_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a run with BOS; its tokenizer has a template of its own, and an EOS that ends no turn."""
    folder = tmp_path_factory.mktemp("bos")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    for path in DEMO_TOKENIZER.iterdir():
        (tokenizer / path.name).write_bytes(path.read_bytes())
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    special = {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "chat_template": "the pretrained model's own",
    }
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({**config, **special}))
    write_checkpoint(folder / "checkpoints", trainer_of(), tokenizer=str(tokenizer), add_bos=True)
    export_hf(folder / "checkpoints", output=folder / "out")
    return folder / "out"


def test_bos_stands_before_the_chat_where_it_was_trained(exported_with_other_special_tokens: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported_with_other_special_tokens)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|endoftext|><|im_start|>user\nHi<|im_end|>\n"


def test_generation_ends_at_the_end_of_turn_and_at_another_eos(exported_with_other_special_tokens: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported_with_other_special_tokens)
    end_of_turn, eos = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    generation = GenerationConfig.from_pretrained(exported_with_other_special_tokens)
    assert generation.eos_token_id == [end_of_turn, eos]
    assert generation.bos_token_id == eos
    assert AutoConfig.from_pretrained(exported_with_other_special_tokens).eos_token_id == [end_of_turn, eos]


def test_a_sentencepiece_file_is_refused_with_the_way_out(tmp_path: Path, saved: Path, shared_dir: Path) -> None:
    run = json.loads((saved / "iter_0000020/run.json").read_text())
    folder = tmp_path / "iter_0000020"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({**run, "vocab_size": 40000}))
    with pytest.raises(TokenizerError, match=r"has no exact form in transformers; pass --tokenizer"):
        export_hf(folder, output=tmp_path / "out", tokenizer=str(shared_dir / "tokenizers/llama2/tokenizer.model"))


def test_markers_that_are_no_tokens_become_stop_strings(
    tmp_path: Path, saved: Path, shared_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = json.loads((saved / "iter_0000020/run.json").read_text())
    folder = tmp_path / "iter_0000020"
    folder.mkdir()
    for path in (saved / "iter_0000020").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "run.json").unlink()
    (folder / "run.json").write_text(json.dumps({**run, "vocab_size": 50257}))
    export_hf(folder, output=tmp_path / "out", tokenizer=str(shared_dir / "tokenizers/gpt2"))
    assert GenerationConfig.from_pretrained(tmp_path / "out").stop_strings == ["<|im_end|>"]
    assert "'<|im_end|>' is no token of its own" in caplog.text

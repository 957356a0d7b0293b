# SPDX-License-Identifier: Apache-2.0
import pytest

from primus.config import TrainerConfig, load_config
from primus.config.places import MODEL_PRESETS, TRAINER_PRESETS

# Published: all parameters, rope_theta, rms_norm_eps, max_position_embeddings, factor of rope_scaling.
PUBLISHED = {
    "llama3_8B": (8_030_261_248, 500_000, 1e-5, 8192, None),
    "llama3.1_8B": (8_030_261_248, 500_000, 1e-5, 131072, 8),
    "llama3.2_1B": (1_235_814_400, 500_000, 1e-5, 131072, 32),
    "llama3_70B": (70_553_706_496, 500_000, 1e-5, 8192, None),
    "llama3.1_70B": (70_553_706_496, 500_000, 1e-5, 131072, 8),
    "qwen2.5_0.5B": (494_032_768, 1_000_000, 1e-6, 32768, None),
    "qwen2.5_7B": (7_615_616_512, 1_000_000, 1e-6, 131072, None),
    "qwen2.5_32B": (32_763_876_352, 1_000_000, 1e-5, 131072, None),
    "qwen3_8B": (8_190_735_360, 1_000_000, 1e-6, 40960, None),
    "mistral_7B": (7_248_023_552, 1_000_000, 1e-5, 32768, None),
}


def _load(preset: str, *, vocab_size: int | None = None) -> TrainerConfig:
    overrides = [f"model={preset}.yaml"] + ([f"vocab_size={vocab_size}"] if vocab_size else [])
    return load_config("run.yaml", overrides=overrides).trainer


def _num_parameters(model: TrainerConfig) -> int:
    """Count as the Hugging Face model does: every matrix and vector, the embedding without padding."""
    assert model.vocab_size is not None
    width = model.kv_channels or model.hidden_size // model.num_attention_heads
    qkv_width = width * (model.num_attention_heads + 2 * (model.num_query_groups or model.num_attention_heads))
    attention = model.hidden_size * (qkv_width + width * model.num_attention_heads)
    attention += qkv_width * model.add_qkv_bias + 2 * width * model.qk_layernorm
    layer = attention + 3 * model.hidden_size * model.ffn_hidden_size + 2 * model.hidden_size
    embeddings = model.vocab_size * model.hidden_size * (1 + model.untie_embeddings_and_output_weights)
    return embeddings + model.num_layers * layer + model.hidden_size


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_preset_has_the_size_and_the_constants_of_the_published_model(preset: str) -> None:
    num_parameters, rotary_base, norm_epsilon, positions, scaling = PUBLISHED[preset]
    model = _load(preset)
    assert _num_parameters(model) == num_parameters
    assert (model.rotary_base, model.norm_epsilon, model.max_position_embeddings) == (
        rotary_base,
        norm_epsilon,
        positions,
    )
    assert (model.rope_scaling_factor if model.use_rope_scaling else None) == scaling


def test_the_tiny_model_is_as_small_as_it_says() -> None:
    assert _num_parameters(_load("tiny_llama", vocab_size=1024)) == 623_488


def test_every_model_preset_is_tested() -> None:
    assert {path.stem for path in MODEL_PRESETS.glob("*.yaml")} == {*PUBLISHED, "tiny_llama"}


def test_the_trainer_preset_trains_the_end_of_every_turn() -> None:
    assert [path.name for path in TRAINER_PRESETS.iterdir()] == ["sft_trainer.yaml"]
    trainer = load_config("run.yaml").trainer
    assert trainer.sft_supervise_end_of_turn
    assert trainer.sft_supervise_turns == "all"

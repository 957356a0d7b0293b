# SPDX-License-Identifier: Apache-2.0
"""A model whose weights stand still, with adapters that are trained."""

import logging
import math
from collections.abc import Iterator

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor, nn

from primus.backends.megatron.lora.adapter import ADAPTED, Adapter
from primus.backends.megatron.model.initialisation import name_in_whole_model, stream_of
from primus.config.schema import LoraConfig
from primus.errors import ConfigError

logger = logging.getLogger("primus")


def add_adapters(model: GPTModel, settings: LoraConfig, *, seed: int) -> None:
    """Freeze a model, and put an adapter beside each of the layers that are named.

    B is zero, so that training begins with the model as it is. A is drawn as PEFT draws it, uniformly within
    `1 / sqrt(inputs)`, from a stream of its own, so that it depends on the seed and on nothing of the layout.

    Args:
        model: A model, or one of its pipeline stages, of Megatron's own layers.
        settings: Which layers, and what their adapters are like.
        seed: Seed of the run.

    Raises:
        ConfigError: If a layer that is named is of a kind that has no adapter.
    """
    model.requires_grad_(requires_grad=False)
    for name, layer in list(_targets(model, settings)):
        adapted = ADAPTED.get(type(layer))
        if adapted is None:
            raise ConfigError(
                f"lora.target_modules: {name} is a {type(layer).__name__}, which has no adapter; take it out"
            )
        is_gated = model.config.gated_linear_unit and name.endswith(".linear_fc1")
        adapter = Adapter(layer, settings, is_gated=is_gated)
        _draw(adapter, name=name_in_whole_model(f"{name}.adapter.lora_a", model), seed=seed)
        # The layer stays the object that Megatron built and knows, with its weights where they are.
        layer.__class__ = adapted  # type: ignore[assignment]  # megatron-core has no types
        layer.adapter = adapter
    if model.pre_process:
        # Recomputation looks for gradients only behind an input that wants one.
        model.embedding.register_forward_hook(_want_gradient)
    trained, still = (
        sum(weight.numel() for weight in model.parameters() if weight.requires_grad is is_trained)
        for is_trained in (True, False)
    )
    logger.info("lora: on this rank %s weights are trained, and %s stand still", f"{trained:,}", f"{still:,}")


def _targets(model: GPTModel, settings: LoraConfig) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in settings.target_modules:
            yield name, module


def _draw(adapter: Adapter, *, name: str, seed: int) -> None:
    num_parts = 1 if adapter.cut_axis == 0 else parallel_state.get_tensor_model_parallel_world_size()
    rank = parallel_state.get_tensor_model_parallel_rank() if num_parts > 1 else 0
    dim, inputs = adapter.lora_a.shape
    device = adapter.lora_a.device
    bound = 1 / math.sqrt(inputs * num_parts)
    drawn = torch.empty(dim, inputs * num_parts, dtype=torch.float32, device=device)
    drawn.uniform_(-bound, bound, generator=stream_of(name, seed=seed, device=device))
    with torch.no_grad():
        adapter.lora_a.copy_(drawn.chunk(num_parts, dim=1)[rank])
        adapter.lora_b.zero_()


def _want_gradient(_: nn.Module, __: object, output: Tensor) -> None:
    if torch.is_grad_enabled():
        output.requires_grad_()

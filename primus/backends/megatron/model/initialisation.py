# SPDX-License-Identifier: Apache-2.0
"""Fresh weights that depend on the seed and on nothing of the layout.

Megatron draws the weights of a rank one after another from one stream, so a model that is cut into pipeline stages
begins with other weights than the same model in one piece. Here every matrix has a stream of its own, named after its
place in the whole model; a rank draws the matrices that it has a part of, and keeps its part.

Shapes: V rows of the embedding that stand for a token, H width of the residual stream.
"""

import hashlib
import math
import re

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

EMBEDDING = "embedding.word_embeddings.weight"
"""The name of the embedding in the whole model."""
_OUTPUT = "output_layer.weight"
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
# The dimension that tensor-parallel ranks share out.
_CUT = {"linear_qkv": 0, "linear_fc1": 0, "linear_proj": 1, "linear_fc2": 1, "word_embeddings": 0, "output_layer": 0}
# What ends in the residual stream, which adds up two of them per layer (GPT-2, Radford et al. 2019, section 2.3).
_INTO_THE_RESIDUAL = ("linear_proj", "linear_fc2")


def leave_uninitialised(_: Tensor) -> None:
    """Take the place of Megatron's initialisation, which `initialise` makes superfluous."""


def initialise(model: GPTModel, *, seed: int, vocab_size: int) -> None:
    """Draw the weights of the model, or of the part of it that this rank has.

    Normal with `init_method_std`, over the square root of twice the number of layers where a matrix ends in the
    residual stream. Norms and biases are left as they were built: ones and zeros.

    Args:
        model: A model, or one of its pipeline stages; tensor-parallel ranks each have their part.
        seed: Seed of the run.
        vocab_size: Rows of the embedding that stand for a token; those behind them become zero.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                _draw(parameter, name=name, model=model, seed=seed, vocab_size=vocab_size)


def _draw(parameter: Tensor, *, name: str, model: GPTModel, seed: int, vocab_size: int) -> None:
    config, num_parts = model.config, parallel_state.get_tensor_model_parallel_world_size()
    module = name.split(".")[-2]
    shape = list(parameter.shape)
    shape[_CUT[module]] *= num_parts
    is_vocabulary = _CUT[module] == 0 and module in {"word_embeddings", "output_layer"}
    std = config.init_method_std / (math.sqrt(2 * config.num_layers) if module in _INTO_THE_RESIDUAL else 1)
    drawn = torch.empty(
        [vocab_size, *shape[1:]] if is_vocabulary else shape, dtype=torch.float32, device=parameter.device
    )
    drawn.normal_(0.0, std, generator=stream_of(name_in_whole_model(name, model), seed=seed, device=parameter.device))
    if is_vocabulary:
        drawn = torch.nn.functional.pad(drawn, (0, 0, 0, shape[0] - vocab_size))
    # Of a gated MLP each rank has a part of the gate, and then the same part of what is gated.
    num_blocks = 2 if module == "linear_fc1" and config.gated_linear_unit else 1
    blocks = drawn.chunk(num_blocks, dim=0) if num_blocks > 1 else (drawn,)
    rank = parallel_state.get_tensor_model_parallel_rank()
    parameter.copy_(torch.cat([block.chunk(num_parts, dim=_CUT[module])[rank] for block in blocks]))


def name_in_whole_model(name: str, model: GPTModel) -> str:
    """Say how a parameter is called in a model of one stage.

    Args:
        name: Its name in the stage.
        model: The stage.

    Returns:
        The name, in which layers are counted from the model's first one; a tied output layer is the embedding.
    """
    if name == _OUTPUT and model.share_embeddings_and_output_weights:
        return EMBEDDING
    return _LAYER.sub(lambda match: f"decoder.layers.{model.decoder.layers[int(match[1])].layer_number - 1}.", name)


def stream_of(name: str, *, seed: int, device: torch.device) -> torch.Generator:
    """Start a stream of random numbers of its own for a name.

    Args:
        name: The name.
        seed: Seed of the run.
        device: Where the numbers are drawn.

    Returns:
        The stream.
    """
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    # A seed is 64 bits with a sign.
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)

# SPDX-License-Identifier: Apache-2.0
"""An adapter beside one of Megatron's parallel linear layers.

A linear layer W gets `alpha / dim * B A x` added to its output. Tensor-parallel ranks share out what they share out of
W: of a column-parallel layer the rows of B, of a row-parallel one the columns of A. What is narrow, `A x`, is what they
exchange.

Shapes: R rank of the adapter, S positions (of this rank's part with sequence parallelism), B sequences, I inputs and O
outputs of this rank's part of the layer.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    get_cuda_rng_tracker,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from primus.config.schema import LoraConfig

MARK = ".adapter."
"""What the names of an adapter's weights have in them, and no others."""


class Adapter(nn.Module):
    """The two matrices, of which this rank has a part.

    Attributes:
        lora_a: A, shape [R, I].
        lora_b: B, shape [O, R].
    """

    def __init__(
        self, layer: ColumnParallelLinear | RowParallelLinear, settings: LoraConfig, *, is_gated: bool
    ) -> None:
        """Make room for an adapter.

        Args:
            layer: The layer that it stands beside.
            settings: Its rank, scaling and dropout.
            is_gated: Whether the layer's outputs on a rank are a part of the gate, then the same part of what is gated.
        """
        super().__init__()
        outputs, inputs = layer.weight.shape
        self.lora_a = nn.Parameter(
            torch.empty(settings.dim, inputs, dtype=layer.weight.dtype, device=layer.weight.device)
        )
        self.lora_b = nn.Parameter(
            torch.empty(outputs, settings.dim, dtype=layer.weight.dtype, device=layer.weight.device)
        )
        self._scale = settings.alpha / settings.dim
        self._dropout, self._drops_first = settings.dropout, settings.dropout_position == "pre"
        self._is_column = isinstance(layer, ColumnParallelLinear)
        self._is_gated = is_gated
        self._group = layer.tp_group
        self._is_shared = layer.tp_group.size() > 1
        self._splits_sequence = layer.sequence_parallel
        cut, whole = (self.lora_b, self.lora_a) if self._is_column else (self.lora_a, self.lora_b)
        set_tensor_model_parallel_attributes(cut, is_parallel=True, dim=self.cut_axis, stride=1)
        # Each rank sees a part of the positions, so Megatron adds up the gradients of the ranks.
        setattr(whole, "sequence_parallel", self._splits_sequence)  # noqa: B010 - Megatron's mark on a parameter

    @property
    def cut_axis(self) -> int:
        """The axis along which ranks share out one of the matrices: rows of B, or columns of A."""
        return 0 if self._is_column else 1

    def forward(self, input_SBI: Tensor) -> Tensor:
        """Give what is added to the layer's output.

        Args:
            input_SBI: What the layer is given.

        Returns:
            Shape [S, B, O], in the cut of the layer's output.
        """
        if self._drops_first:
            # The whole input is on every rank, unless the layer is row-parallel or positions are shared out.
            input_SBI = self._drop(input_SBI, differs=not self._is_column or self._splits_sequence)
        narrow_SBR = self._exchange(linear(input_SBI, self.lora_a))
        output_SBO = linear(narrow_SBR, self.lora_b) * self._scale
        return (
            output_SBO
            if self._drops_first
            else self._drop(output_SBO, differs=self._is_column or self._splits_sequence)
        )

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: Sequence[tuple[int, int, int]] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Describe this rank's part for `dist_checkpointing`.

        Args:
            prefix: The adapter's name in the model.
            sharded_offsets: Where the layer is among all.
            metadata: Megatron's.

        Returns:
            Shards by name.
        """
        cut = "lora_b" if self._is_column else "lora_a"
        shards: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {cut: self.cut_axis},
            sharded_offsets,
            tp_group=self._group,
            dp_cp_group=(metadata or {})["dp_cp_group"],
        )
        if self._is_gated:
            shards[f"{prefix}lora_b"] = apply_swiglu_sharded_factory(shards[f"{prefix}lora_b"], sharded_offsets)
        return shards

    def _exchange(self, narrow_SBR: Tensor) -> Tensor:
        if not self._is_shared:
            return narrow_SBR
        exchange = {
            (True, False): copy_to_tensor_model_parallel_region,
            (True, True): gather_from_sequence_parallel_region,
            (False, False): reduce_from_tensor_model_parallel_region,
            (False, True): reduce_scatter_to_sequence_parallel_region,
        }[self._is_column, self._splits_sequence]
        exchanged: Tensor = exchange(narrow_SBR, group=self._group)
        return exchanged

    def _drop(self, values: Tensor, *, differs: bool) -> Tensor:
        """Dropout; drawn from the same stream on all tensor-parallel ranks if the values are the same there."""
        if not self._dropout or not self.training:
            return values
        stream: AbstractContextManager[object] = get_cuda_rng_tracker().fork() if differs else nullcontext()
        with stream:
            return dropout(values, self._dropout)


class _Adapted:
    """What a linear layer with an adapter does otherwise."""

    adapter: Adapter

    def forward(self, input_: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        """The layer's output, with the adapter's added to it."""
        output, bias = super().forward(input_, *args, **options)  # type: ignore[misc]
        return output + self.adapter(input_), bias

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: Sequence[tuple[int, int, int]] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The layer's shards, and the adapter's in the adapter's own cut."""
        shards = super().sharded_state_dict(prefix, sharded_offsets, metadata)  # type: ignore[misc]
        return {**shards, **self.adapter.sharded_state_dict(f"{prefix}adapter.", sharded_offsets, metadata)}


class AdaptedColumnParallelLinear(_Adapted, ColumnParallelLinear):  # type: ignore[misc]
    """A column-parallel layer with an adapter."""


class AdaptedRowParallelLinear(_Adapted, RowParallelLinear):  # type: ignore[misc]
    """A row-parallel layer with an adapter."""


ADAPTED = {ColumnParallelLinear: AdaptedColumnParallelLinear, RowParallelLinear: AdaptedRowParallelLinear}
"""The class with an adapter for each class of Megatron's linear layers."""

# SPDX-License-Identifier: Apache-2.0
"""The weights and the optimizer's state, for Megatron's sharded format `torch_dist`, and how they are loaded from it.

The state of the distributed optimizer is saved in the form that any later layout can read (`fully_reshardable`). The
learning-rate schedule and the order of the data are functions of the step and the configuration, so nothing of them is
saved, and hyper-parameters are always those of the configuration.
"""

import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from primus.backends.megatron.checkpoint.folder import (
    RunFacts,
    check_run_continues,
    check_weights_fit,
    read_run,
)
from primus.backends.megatron.lora.adapter import MARK
from primus.errors import CheckpointError

logger = logging.getLogger("primus")

_CANNOT_READ = (
    CheckpointingException,
    CheckpointException,  # no Exception; torch raises it on every rank when one of them fails
    AttributeError,  # what Megatron's report of a missing common.pt ends in
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
    ValueError,
    pickle.UnpicklingError,
)


def load_checkpoint(
    folder: Path,
    *,
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    run: RunFacts,
    weights_only: bool,
) -> int:
    """Load a checkpoint into the model and the optimizer; all ranks call it together.

    Args:
        folder: An `iter_*` folder.
        model: The model's chunks of this rank.
        optimizer: Their optimizer.
        run: What the weights are to be used for.
        weights_only: Leave the optimizer's state out, and start at step 0.

    Returns:
        The number of steps that were made; the next one has this index. 0 with `weights_only`.

    Raises:
        CheckpointError: If it cannot be read, it is of another model, or, unless `weights_only`, of a run with other
            data, another order of it or another kind of optimizer state.
    """
    saved = read_run(folder)
    check_weights_fit(saved, run=run, folder=folder)
    if weights_only:
        _load_weights(folder, model=model, optimizer=optimizer, has_adapters=saved.lora is not None)
        logger.info("%s: loaded the weights of step %d", folder, saved.iteration)
        return 0
    check_run_continues(saved, run=run, folder=folder)
    _load_everything(folder, model=model, optimizer=optimizer)
    logger.info("%s: continuing at step %d", folder, saved.iteration)
    return saved.iteration


def _load_weights(
    folder: Path, *, model: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer, has_adapters: bool
) -> None:
    """Load the weights.

    Adapters that the checkpoint lacks stay as they were drawn. What layers keep beside their weights stays, too: which
    of them keep something depends on whether they are Transformer Engine's.
    """

    def stays(name: str) -> bool:
        return name.endswith("_extra_state") or (MARK in name and not has_adapters)

    request = {
        chunk: {name: share for name, share in shares.items() if not stays(name)}
        for chunk, shares in _sharded_weights(model).items()
    }
    state = _read(folder, request)
    for number, chunk in enumerate(model):
        kept = {name: value for name, value in chunk.module.state_dict().items() if stays(name)}
        state[f"model{number}"] = {**kept, **state[f"model{number}"]}
    _give_weights(model, state)
    # The float32 copies of bfloat16 weights, and the shards of the distributed optimizer, were made before.
    optimizer.reload_model_params()


def _load_everything(folder: Path, *, model: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer) -> None:
    with _hyperparameters_kept(optimizer):
        _give_steps_to_fresh_state(optimizer)
        state = _read(folder, sharded_state(model, optimizer, is_loading=True))
        _give_weights(model, state)
        _load_optimizer(optimizer, state["optimizer"])


def _give_weights(model: Sequence[DistributedDataParallel], state: Mapping[str, Any]) -> None:
    for number, chunk in enumerate(model):
        chunk.module.load_state_dict(state[f"model{number}"])


def _metadata() -> dict[str, Any]:
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        # Gathers the state on one rank's host memory instead of on all ranks.
        "distrib_optim_fully_reshardable_mem_efficient": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
    }


def sharded_state(
    model: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer, *, is_loading: bool
) -> dict[str, Any]:
    """Describe this rank's part of the state; all ranks call it together.

    Args:
        model: The model's chunks of this rank.
        optimizer: Their optimizer.
        is_loading: Describe the state that there is room for, not the one that is there.

    Returns:
        Megatron's sharded state. The shards name what they are part of, and where in it they belong, so that it does
        not matter which chunk of which rank has them when they are loaded.
    """
    metadata = _metadata()
    weights = _sharded_weights(model)
    state = optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=metadata)
    if "param_state" in state and state["param_state"] is None:
        # Another rank has gathered it; Megatron takes the None for a difference between the ranks, and warns.
        del state["param_state"]
    return {**weights, "optimizer": state}


def _sharded_weights(model: Sequence[DistributedDataParallel]) -> dict[str, Any]:
    metadata = _metadata()
    return {f"model{number}": chunk.module.sharded_state_dict(metadata=metadata) for number, chunk in enumerate(model)}


def _read(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(dist_checkpointing.load(request, str(folder)))
    except _CANNOT_READ as exc:
        raise CheckpointError(f"{folder}: cannot be read ({reason_of(exc)}); name another checkpoint") from exc


def reason_of(exc: BaseException) -> str:
    """What went wrong in torch or Megatron, on one line."""
    if isinstance(exc, CheckpointException):
        exc = next(iter(exc.failures.values()))[0]
    return f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}"


@contextmanager
def _hyperparameters_kept(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Put learning rates, betas and the like back to what they are now, after a checkpoint has brought its own."""
    state = ("params", "step")
    kept = [{key: group[key] for key in group if key not in state} for group in optimizer.param_groups]
    yield
    for group, values in zip(optimizer.param_groups, kept, strict=True):
        group.update(values)


def _torch_optimizers(optimizer: MegatronOptimizer) -> Iterator[DistributedOptimizer]:
    """The distributed optimizers around PyTorch's AdamW, whose steps Megatron 0.16.1 mishandles.

    PyTorch keeps the number of steps as a tensor beside each parameter's state; Transformer Engine and apex keep one
    number for all. Where Megatron expects the latter the functions below step in.
    """
    for part in optimizer.chained_optimizers:
        if isinstance(part, DistributedOptimizer) and isinstance(part.optimizer, torch.optim.AdamW):
            yield part


def _give_steps_to_fresh_state(optimizer: MegatronOptimizer) -> None:
    """Let a fresh distributed optimizer describe the state it has room for; it asks for the steps that it made."""
    for part in _torch_optimizers(optimizer):
        part.init_state_fn(part.optimizer, part.config)
        for state in part.optimizer.state.values():
            state.setdefault("step", torch.zeros((), dtype=torch.float32, device=state["exp_avg"].device))


def _load_optimizer(optimizer: MegatronOptimizer, loaded: Mapping[Any, Any]) -> None:
    torch_optimizers = list(_torch_optimizers(optimizer))
    if not torch_optimizers:
        optimizer.load_state_dict(loaded)
        return
    parts = optimizer.chained_optimizers
    # Megatron leaves the numbers of the parts out where there is one.
    states = [loaded] if len(parts) == 1 else [loaded[number] for number in range(len(parts))]
    for part, state in zip(parts, states, strict=True):
        if part in torch_optimizers:
            _load_torch_optimizer(part, state)
        else:
            part.load_state_dict(state)


def _load_torch_optimizer(part: DistributedOptimizer, loaded: Mapping[str, Any]) -> None:
    step = float(loaded["optimizer"]["param_groups"][0]["step"])
    # In float32 the shards are views of the model's parameters, which autograd guards.
    with torch.no_grad():
        part.load_state_dict({key: value for key, value in loaded.items() if not key.startswith("param_state")})
        # Loading a shard copies every entry of its state, and the checkpoint has none for the steps.
        for state in part.optimizer.state.values():
            del state["step"]
        part.load_parameter_state_from_fully_reshardable(loaded["param_state"])
        # One tensor for each parameter: AdamW counts in place, and Megatron has just given all of them the same one.
        for state in part.optimizer.state.values():
            state["step"] = torch.full((), step, dtype=torch.float32, device=state["exp_avg"].device)

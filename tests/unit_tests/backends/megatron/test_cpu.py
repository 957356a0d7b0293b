# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from primus.backends.megatron.cpu import megatron_on_cpu, untranslated
from primus.backends.megatron.distributed import seed_weights

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


def test_inside_the_block_cuda_means_the_cpu() -> None:
    with megatron_on_cpu():
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.zeros(2, device=torch.device("cuda", 0), pin_memory=True).device.type == "cpu"
        assert torch.zeros(2).cuda().device.type == "cpu"
        assert torch.zeros(2, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
        assert torch.zeros(2, device=torch.cuda.current_device()).device.type == "cpu"
        torch.cuda.synchronize()


def test_type_with_a_target_still_converts() -> None:
    with megatron_on_cpu():
        assert torch.zeros(2).type(torch.int64).dtype == torch.int64


def test_after_the_block_everything_is_as_before() -> None:
    before = torch.cuda.current_device, torch.cuda.synchronize
    with megatron_on_cpu():
        pass
    assert (torch.cuda.current_device, torch.cuda.synchronize) == before
    assert torch.zeros(2).type() == "torch.FloatTensor"


def test_untranslated_code_reaches_pytorch_itself() -> None:
    with megatron_on_cpu(), untranslated():
        assert torch.zeros(2).type() == "torch.FloatTensor"


@pytest.mark.usefixtures("joined")
def test_a_forked_random_stream_goes_on_where_it_was_left_and_disturbs_no_other() -> None:
    def draws() -> tuple[list[float], list[float]]:
        seed_weights(5)
        tracker, default, forked = get_cuda_rng_tracker(), [], []
        for _ in range(2):
            default.append(torch.rand(()).item())
            with tracker.fork():
                forked.append(torch.rand(()).item())
        return default, forked

    default, forked = draws()
    torch.manual_seed(5)
    assert default == [torch.rand(()).item(), torch.rand(()).item()]
    assert len({*default, *forked}) == 4
    assert draws() == (default, forked)


@pytest.mark.parametrize("recompute", [{"recompute_granularity": "selective"}, {"recompute_granularity": "full"}])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputed_activations_give_the_same_losses(
    tiny: ModuleType, tmp_path: Path, recompute: dict[str, str], dropout: float
) -> None:
    common = {"train_iters": 4, "hidden_dropout": dropout, "attention_dropout": dropout}
    kept = tiny.run_tiny(tiny.tiny_config(tmp_path / "kept", **common))
    again = tiny.run_tiny(tiny.tiny_config(tmp_path / "again", **common, **recompute))
    assert tiny.read_losses(again) == tiny.read_losses(kept)


def test_recomputation_leaves_nothing_behind_for_a_gpu_that_never_comes(tiny: ModuleType, tmp_path: Path) -> None:
    def num_queued(train_iters: int) -> int:
        before = len(torch.cuda._queued_calls)
        tiny.run_tiny(tiny.tiny_config(tmp_path, train_iters=train_iters, recompute_granularity="full"))
        return len(torch.cuda._queued_calls) - before

    assert num_queued(4) == num_queued(1)


def test_an_uncaught_exception_is_shown_as_before_a_run(tiny: ModuleType, tmp_path: Path) -> None:
    before = sys.excepthook
    tiny.run_tiny(tiny.tiny_config(tmp_path, train_iters=1))
    assert sys.excepthook is before

# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of one layout is gone on from in another: several steps of it, since the first may be right by chance.

(Megatron 0.16.1 restores the distributed optimizer so that the first loss is right and the later ones are not.)
"""

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit_tests.backends.megatron.real_ranks import run_ranks

TINY_RUN = Path(__file__).parents[1] / "tiny_run.py"
NUM_STEPS = 8
COMMON = {"num_layers": 4, "save_interval": 2, "weight_decay": 0.1, "train_iters": NUM_STEPS, "eval_interval": 0}
OPTIMIZERS: dict[str, dict[str, object]] = {"whole": {}, "distributed": {"use_distributed_optimizer": True}}
LAYOUTS: dict[str, dict[str, object]] = {
    "dp2": {},
    "tp2sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2vpp2": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    "cp2": {"context_parallel_size": 2},
}
NEXT = dict(zip(LAYOUTS, [*list(LAYOUTS)[1:], *list(LAYOUTS)[:1]], strict=True))
TOLERANCES = {"lm_loss": 2e-6, "grad_norm": 4e-6}

pytestmark = pytest.mark.slow


def checkpoint(folder: Path, step: int) -> str:
    return str(folder / "primus" / "user" / "tiny" / "checkpoints" / f"iter_{step:07d}")


@pytest.fixture(scope="module")
def runs(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: by one process; from step 2 of it in each layout; from step 4 of these in the next one, and alone."""
    folder = tmp_path_factory.mktemp("runs")
    first: list[tuple[str, str, dict[str, object]]] = []
    second: list[tuple[str, str, dict[str, object]]] = []
    for name, optimizer in OPTIMIZERS.items():
        keys = {**COMMON, **optimizer}
        place = folder / name
        tiny.run_tiny(tiny.tiny_config(place / "one", **keys), validation=None)
        for layout, sizes in LAYOUTS.items():
            first.append((str(place / layout), "train", {**keys, **sizes, "load": checkpoint(place / "one", 2)}))
            load = {"load": checkpoint(place / layout, 4)}
            second.append((str(place / f"{layout}_then_next"), "train", {**keys, **LAYOUTS[NEXT[layout]], **load}))
    run_ranks(TINY_RUN, json.dumps([*first, *second]), num_ranks=2, timeout_s=840)
    for name, optimizer in OPTIMIZERS.items():
        for layout in LAYOUTS:
            load = {"load": checkpoint(folder / name / layout, 4)}
            config = tiny.tiny_config(folder / name / f"{layout}_then_one", **COMMON, **optimizer, **load)
            tiny.run_tiny(config, validation=None)
    return folder


def read(folder: Path, name: str) -> list[float]:
    lines = (folder / "primus" / "user" / "tiny" / "logs" / "metrics.jsonl").read_text().splitlines()
    return [line[name] for line in map(json.loads, lines) if name in line]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_one_layout_is_gone_on_from_in_another(runs: Path, optimizer: str, layout: str) -> None:
    place = runs / optimizer
    for who, num_steps in ((layout, 6), (f"{layout}_then_next", 4), (f"{layout}_then_one", 4)):
        assert read(place / who, "batch_hash") == read(place / "one", "batch_hash")[-num_steps:]
        for name, tolerance in TOLERANCES.items():
            found, expected = read(place / who, name), read(place / "one", name)[-num_steps:]
            assert found == pytest.approx(expected, abs=tolerance), (who, name)

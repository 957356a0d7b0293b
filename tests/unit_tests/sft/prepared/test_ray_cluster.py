# SPDX-License-Identifier: Apache-2.0
"""A cluster prepares the same bytes as one machine, and goes on with what another has begun."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import primus.sft.shards
from primus.errors import ConfigError, DataError
from primus.sft.prepared import Progress, plan_preparation, prepare
from primus.sft.prepared.ray_cluster import RayPreparation
from primus.sft.shards import ShardJob
from tests.unit_tests.sft.prepared.conftest import contents, make_job, use_small_shards, write_conversations

# What Ray says about itself.
pytestmark = pytest.mark.filterwarnings("default")


def set_up_process() -> None:
    """What each process of the cluster begins with."""
    use_small_shards(setattr)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayPreparation]:
    """A cluster of this machine whose processes make small shards."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    root = str(Path(__file__).parents[4])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        runtime_env={"worker_process_setup_hook": set_up_process, "env_vars": {"PYTHONPATH": root}},
    )
    yield RayPreparation("local")
    ray.shutdown()


def prepare_on(cluster: RayPreparation, job: ShardJob, out: Path) -> list[Progress]:
    seen: list[Progress] = []
    with cluster.connected():
        cluster.prepare(job, lambda _: out, on_progress=seen.append)
    return seen


@pytest.fixture
def files(tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(primus.sft.shards, "_GROUP_BYTES", 20_000)
    counts = [60, 20, 3, 3, 60, 40]
    return [
        write_conversations(tmp_path / f"{number}.jsonl", count=count, seed=number)
        for number, count in enumerate(counts)
    ]


@pytest.mark.slow
def test_a_cluster_prepares_the_same_bytes(cluster: RayPreparation, files: list[Path], tmp_path: Path) -> None:
    job = make_job(*files, validation_fraction=0.1)
    seen = prepare_on(cluster, job, tmp_path / "ray")
    prepare(plan_preparation(job), tmp_path / "alone", num_workers=1)
    assert len(list((tmp_path / "alone" / "train").iterdir())) > 6
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")
    assert len(seen) > 2
    assert seen[-1] == Progress(186, sum(file.stat().st_size for file in files))
    assert prepare_on(cluster, job, tmp_path / "ray") == []


@pytest.mark.slow
def test_a_cluster_goes_on_with_what_one_machine_has_begun(
    cluster: RayPreparation, files: list[Path], tmp_path: Path
) -> None:
    job = make_job(*files)
    plan = plan_preparation(job)
    prepare(plan, tmp_path / "alone", num_workers=1)

    class StopError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.num_rows > 100:
            raise StopError

    with pytest.raises(StopError):
        prepare(plan, tmp_path / "out", num_workers=1, on_progress=stop)
    seen = prepare_on(cluster, job, tmp_path / "out")
    assert sum(1 for _ in seen) >= 1
    assert seen[-1].num_rows < 186
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


@pytest.mark.slow
def test_problems_arrive_as_they_are(cluster: RayPreparation, files: list[Path], tmp_path: Path) -> None:
    job = make_job(*files, bad_rows="error")
    with pytest.raises(DataError) as alone:
        prepare(plan_preparation(job), tmp_path / "out", num_workers=1)
    with pytest.raises(DataError) as found:
        prepare_on(cluster, job, tmp_path / "out")
    assert found.value.problems == alone.value.problems
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.slow
def test_a_conversation_that_goes_on_in_the_next_group_is_refused_as_on_one_machine(
    cluster: RayPreparation, small_shards: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(primus.sft.shards, "_GROUP_BYTES", 100)
    turn = '{"conversation_id": "c%d", "turn": %d, "role": "%s", "content": "hello"}\n'
    files = []
    for number, rows in enumerate(([(1, "user"), (1, "assistant")], [(1, "user"), (2, "user"), (2, "assistant")])):
        file = tmp_path / f"{number}.jsonl"
        file.write_text("".join(turn % (name, index, role) for index, (name, role) in enumerate(rows)))
        files.append(file)
    job = make_job(*files)
    with pytest.raises(DataError, match="stand apart, the others in the file before") as alone:
        prepare(plan_preparation(job), tmp_path / "out", num_workers=1)
    with pytest.raises(DataError) as found:
        prepare_on(cluster, job, tmp_path / "out")
    assert found.value.problems == alone.value.problems


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--ray: needs Ray .*pip install 'primus\[ray\]'"):
        RayPreparation("auto")

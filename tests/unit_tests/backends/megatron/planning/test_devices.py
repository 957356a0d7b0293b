# SPDX-License-Identifier: Apache-2.0
import pytest

from primus.backends.megatron.planning.devices import GPUS, choose_machine, gpu_by_name, gpu_of_device
from primus.errors import ConfigError


def test_a_misspelt_gpu_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"--gpu: 'mi30x' is not known; did you mean MI300X\?"):
        gpu_by_name("mi30x")
    with pytest.raises(ConfigError, match=r"known are A100, H100, .*; for another, give --gpu-memory"):
        gpu_by_name("toaster")


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("AMD Instinct MI300X", "MI300X"),
        ("AMD Instinct MI355X OAM", "MI355X"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GB200", None),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_device_is_known_by_its_drivers_name_or_not_at_all(device: str, name: str | None) -> None:
    found = gpu_of_device(device)
    assert (found and found.name) == name


def test_no_two_kinds_are_mixed_up() -> None:
    for gpu in GPUS:
        assert [gpu_of_device(f"Maker {name}") for name in gpu.device_names] == [gpu] * len(gpu.device_names)


def test_what_is_asked_for_wins_over_what_is_there() -> None:
    def choose(name: str | None = None, memory_gib: float | None = None, peak_tflops: float | None = None) -> object:
        machine = choose_machine(
            name=name, memory_gib=memory_gib, peak_tflops=peak_tflops, local=("NVIDIA H200", 139.8)
        )
        return machine and (machine.gpu.name, machine.memory_gib, machine.gpu.peak_tflops, machine.is_assumed)

    assert choose() == ("H200", 139.8, 989, False)
    assert choose("MI300X") == ("MI300X", 191, 1307, False)
    assert choose("MI300X", 64, 500) == ("MI300X", 64, 500, False)
    assert choose(memory_gib=40) == ("H200", 40, 989, False)


def test_of_an_unknown_gpu_only_the_memory_counts() -> None:
    machine = choose_machine(name=None, memory_gib=None, peak_tflops=None, local=("NVIDIA GeForce RTX 4090", 23.6))
    assert machine is not None
    assert (machine.memory_gib, machine.is_assumed) == (23.6, True)
    assert choose_machine(name=None, memory_gib=None, peak_tflops=None, local=None) is None

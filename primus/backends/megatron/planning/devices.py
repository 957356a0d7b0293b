# SPDX-License-Identifier: Apache-2.0
"""What is known of the GPUs that large models are trained on.

Rates are those of the vendors' data sheets (NVIDIA A100 80GB, H100 SXM, H200 and HGX B200; AMD Instinct MI300X, MI325X
and MI355X), dense, in bfloat16 with float32 accumulation. Links are those of one GPU to the others of its node, in one
direction: half of what data sheets give for NVLink, and the seven Infinity Fabric links of an AMD Instinct platform of
eight together. Memory is what the driver leaves of it on these machines, rounded down, since data sheets count now in
gigabytes and now in gibibytes. How much of the peak rate large matrix products reach is an assumption: about two thirds
on NVIDIA's GPUs and half on AMD's; measure your own, and look at the order of layouts rather than at their times.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from primus.errors import ConfigError

GIB = 2**30

GPUS_PER_NODE = 8
"""GPUs of a machine that have fast links to each other; all of those below come in eights."""

NETWORK_BYTES_PER_S = 50e9
"""One network card of 400 Gbit/s per GPU, which is how such machines are usually connected."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A kind of GPU."""

    name: str
    """Its short name."""
    device_names: tuple[str, ...]
    """Words of the name that its driver gives it, any of which tell it from all others."""
    memory_gib: float
    """Memory that a process can use."""
    peak_tflops: float
    """Dense bfloat16 matrix rate, in 10^12 operations per second."""
    matmul_share: float
    """Share of it that large matrix products are assumed to reach."""
    memory_bytes_per_s: float
    """Bandwidth of its memory."""
    link_bytes_per_s: float
    """Bandwidth to the other GPUs of its node, in one direction."""


GPUS: Sequence[Gpu] = (
    Gpu(
        name="A100",
        device_names=("A100-SXM4-80GB",),
        memory_gib=79,
        peak_tflops=312,
        matmul_share=0.65,
        memory_bytes_per_s=2.0e12,
        link_bytes_per_s=300e9,
    ),
    Gpu(
        name="H100",
        device_names=("H100 80GB HBM3",),
        memory_gib=79,
        peak_tflops=989,
        matmul_share=0.65,
        memory_bytes_per_s=3.35e12,
        link_bytes_per_s=450e9,
    ),
    Gpu(
        name="H200",
        device_names=("H200",),
        memory_gib=139,
        peak_tflops=989,
        matmul_share=0.65,
        memory_bytes_per_s=4.8e12,
        link_bytes_per_s=450e9,
    ),
    Gpu(
        name="B200",
        device_names=("B200",),
        memory_gib=178,
        peak_tflops=2250,
        matmul_share=0.65,
        memory_bytes_per_s=8.0e12,
        link_bytes_per_s=900e9,
    ),
    Gpu(
        name="MI300X",
        device_names=("MI300X",),
        memory_gib=191,
        peak_tflops=1307,
        matmul_share=0.5,
        memory_bytes_per_s=5.3e12,
        link_bytes_per_s=448e9,
    ),
    Gpu(
        name="MI325X",
        device_names=("MI325X",),
        memory_gib=255,
        peak_tflops=1307,
        matmul_share=0.5,
        memory_bytes_per_s=6.0e12,
        link_bytes_per_s=448e9,
    ),
    Gpu(
        name="MI355X",
        device_names=("MI355X",),
        memory_gib=287,
        peak_tflops=2516,
        matmul_share=0.5,
        memory_bytes_per_s=8.0e12,
        link_bytes_per_s=537e9,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The GPUs that a run is planned for."""

    gpu: Gpu
    """Their kind, for its rates."""
    memory_gib: float
    """Memory of each."""
    is_assumed: bool = False
    """Whether only the memory is known, and the rates are those of another kind."""

    @property
    def name(self) -> str:
        """The GPU in a few words."""
        return f"GPU (rates of {self.gpu.name} assumed)" if self.is_assumed else self.gpu.name


def gpu_by_name(name: str) -> Gpu:
    """Find a kind of GPU.

    Args:
        name: Its short name, in capitals or not.

    Returns:
        What is known of it.

    Raises:
        ConfigError: If there is none of that name.

    Examples:
        >>> gpu_by_name("mi300x").memory_gib
        191
    """
    by_name = {gpu.name: gpu for gpu in GPUS}
    if name.upper() not in by_name:
        near = difflib.get_close_matches(name.upper(), by_name, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(by_name)}; for another, give --gpu-memory"
        raise ConfigError(f"--gpu: {name!r} is not known; {hint}")
    return by_name[name.upper()]


def gpu_of_device(device_name: str) -> Gpu | None:
    """Find the kind of a GPU by the name that its driver gives it.

    Args:
        device_name: The name, as `torch.cuda.get_device_name()` gives it.

    Returns:
        What is known of it, or None. Cards of the same chip that run at another rate (H100 PCIe, H200 NVL) are unknown.

    Examples:
        >>> names = ("NVIDIA H200", "AMD Instinct MI300X", "NVIDIA H200 NVL", "NVIDIA GH200 480GB")
        >>> [gpu and gpu.name for gpu in map(gpu_of_device, names)]
        ['H200', 'MI300X', None, None]
    """
    if re.search(r"NVL|PCIe", device_name):
        return None
    for gpu in GPUS:
        if any(re.search(rf"\b{re.escape(name)}\b", device_name) for name in gpu.device_names):
            return gpu
    return None


def choose_machine(
    *,
    name: str | None,
    memory_gib: float | None,
    peak_tflops: float | None,
    local: tuple[str, float] | None,
) -> Machine | None:
    """Decide which GPUs a run is planned for.

    Args:
        name: Short name of a kind of GPU, if one is asked for.
        memory_gib: Memory of each, in place of what is known of that kind.
        peak_tflops: Peak rate, in place of what is known of that kind.
        local: Name and memory in GiB of this machine's GPU, if it has one; taken if no name is given.

    Returns:
        The GPUs; None if none are named and there are none here. Of a kind that is not known only the memory counts,
        and the rates are those of an H100.

    Raises:
        ConfigError: If there is no kind of that name.

    Examples:
        >>> choose_machine(name="h200", memory_gib=None, peak_tflops=None, local=None).memory_gib
        139
        >>> choose_machine(name=None, memory_gib=48, peak_tflops=None, local=None).name
        'GPU (rates of H100 assumed)'
    """
    gpu = None if name is None else gpu_by_name(name)
    if name is None and local is not None:
        gpu, memory_gib = gpu_of_device(local[0]), memory_gib or local[1]
    if gpu is None and memory_gib is None:
        return None
    known = gpu or gpu_by_name("H100")
    return Machine(
        gpu=known if peak_tflops is None else replace(known, peak_tflops=peak_tflops),
        memory_gib=memory_gib or known.memory_gib,
        is_assumed=gpu is None,
    )

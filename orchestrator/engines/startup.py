"""How long a start may take, and how much shared memory its processes need."""

from __future__ import annotations

from orchestrator.engines.job import ServingJob
from orchestrator.units import GIB

COMPILE_S = 300.0
"""Compiling and capturing graphs: 166 s of an 11-minute vLLM boot were torch.compile
(mitchross/talos-argocd-proxmox pull 1848); a large model takes longer."""
BOOT_S = 120.0
"""Imports, process groups and warm-up, without weights: 48 s on an A10 with warm caches
(vllm pull 49782), more for several devices."""
MIN_START_S = 600.0
"""Never less: shorter budgets killed healthy starts (vllm issue 17386, kserve issue 5062)."""
SHM_ONE_BYTES = 1 * GIB
SHM_SEVERAL_BYTES = 16 * GIB
"""NCCL and the workers' message queues live in /dev/shm; Docker's 64 MiB end in SIGBUS
(vllm issues 1710 and 6574, NVIDIA NIM's examples use 16 GB)."""
SHM_CPU_BYTES = 4 * GIB
"""vLLM 0.33 docs, getting_started/installation/cpu."""


def start_s(job: ServingJob, *, compiles: bool = True) -> float:
    """Return the seconds a container may take until it is ready, from the bytes it has to move.

    Unknown bytes to fetch count as all of the weights. Tensor parallel ranks each read the whole
    checkpoint, but from the page cache after the first.

    >>> from orchestrator.catalog.values import ModelFacts
    >>> from orchestrator.engines.job import Source
    >>> facts = ModelFacts("m", "LlamaForCausalLM", 1, 1, 1, 1, 1, 1, 1)
    >>> start_s(ServingJob(facts, Source("m"), fetch_bytes=0, load_bytes=2**30))
    600.0
    >>> start_s(ServingJob(facts, Source("m"), load_bytes=141 * 10**9))
    3846.0
    """
    fetch = job.load_bytes if job.fetch_bytes is None else job.fetch_bytes
    if job.source.scheme == "folder":
        fetch = job.fetch_bytes or 0
    moving = fetch / job.fetch_bytes_s + job.load_bytes / job.load_bytes_s
    needed = moving + BOOT_S + (COMPILE_S if compiles else 0.0)
    return float(max(MIN_START_S, round(needed)))


def shm_bytes(job: ServingJob) -> int:
    """Return the size of /dev/shm for one container of ``job``."""
    if job.accelerator is None:
        return SHM_CPU_BYTES
    return SHM_ONE_BYTES if job.count == 1 else SHM_SEVERAL_BYTES


def utilization(job: ServingJob, default: float) -> float:
    """Return the fraction of device memory to ask for: what is asked, or what is free, or ``default``.

    An engine that finds less free memory than the fraction of the *total* it was given ends at
    boot, so a device that others use gets a smaller fraction, rounded down to hundredths and
    with one left over for what moves in between.

    >>> from orchestrator.catalog.values import Accelerator, ModelFacts
    >>> from orchestrator.engines.job import Source
    >>> facts = ModelFacts("m", "LlamaForCausalLM", 1, 1, 1, 1, 1, 1, 1)
    >>> l4 = Accelerator("L4-24GB", "nvidia", "ada", 24, 23 * 2**30, "test")
    >>> utilization(ServingJob(facts, Source("m"), l4), 0.92)
    0.92
    >>> utilization(ServingJob(facts, Source("m"), l4, free_bytes=15 * 2**30), 0.92)
    0.64
    """
    wanted = default if job.memory_utilization is None else job.memory_utilization
    if job.accelerator is None or job.free_bytes is None or job.memory_utilization is not None:
        return wanted
    free = job.free_bytes * 100 // job.accelerator.visible_bytes - 1
    return min(wanted, max(1, free) / 100)

"""Clocks, peaks and limits of a device; it knows nothing of models and of what is compared."""

import gc
import time
from collections.abc import Iterable

import torch

from recbole_etegrec.preflight.memory_plan import GIB


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def clear(device: torch.device) -> None:
    """Free what nothing uses."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Begin to look for the most memory in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """The most memory in use since `reset_peak`; None where torch does not count it."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


def device_gib(device: torch.device) -> float:
    """Memory of a device; of the CPU more than there is, so that nothing is left out."""
    if device.type != "cuda":
        return float("inf")
    return torch.cuda.get_device_properties(device).total_memory / GIB


def limit_memory(device: torch.device, gib: float | None) -> None:
    """Let this process have no more than a smaller card has; None for all there is."""
    if device.type == "cuda":
        share = 1.0 if gib is None else min(gib / device_gib(device), 1.0)
        torch.cuda.set_per_process_memory_fraction(share)  # of the current device


def matmul_rates(device: torch.device, sizes: Iterable[int]) -> dict[int, float]:
    """Operations a second of products of bf16 square matrices, by their size."""
    rates = {}
    for size in sizes:
        a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(3):
            a @ b
        started = now(device)
        for _ in range(10):
            a @ b
        rates[size] = 10 * 2 * size**3 / (now(device) - started)
    return rates


def copy_rate(device: torch.device, size: int) -> float:
    """Bytes a second that are read and written when so many are copied."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    started = now(device)
    for _ in range(10):
        target.copy_(source)
    return 10 * 2 * size / (now(device) - started)

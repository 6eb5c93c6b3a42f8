"""Clocks, peaks and limits of a device, and the arithmetic that a training step cannot do without.

It knows models only by the shapes of their layers, and nothing of what is compared.
"""

import gc
import time
from collections.abc import Iterable

import torch
from torch import nn

from recbole_etegrec.data import SequenceBatch
from recbole_etegrec.memory_plan import GIB
from recbole_etegrec.recommender import Recommender


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


def linear_parameters(module: nn.Module) -> tuple[int, int]:
    """Weights of linear layers: those that are frozen, and those that learn."""
    weights = [m.weight for m in module.modules() if isinstance(m, nn.Linear)]
    learn = sum(w.numel() for w in weights if w.requires_grad)
    return sum(w.numel() for w in weights) - learn, learn


def useful_flops(recommender: Recommender, batches: Iterable[SequenceBatch]) -> int:
    """Operations of a forward and backward pass that no implementation can spare.

    A frozen weight costs 4 a token (2 forward, 2 for the gradient of its input), one that learns
    6. Attention costs ``12 * width`` a layer and pair of tokens of which one sees the other: 4
    forward (scores and sums), twice as many backward. The heads are counted where they are read.
    Padding, the last code of each sequence, which nothing follows, and whatever is computed anew
    under checkpointing count for nothing; neither do elementwise operations.
    """
    config = recommender.backbone.config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    frozen, learning = linear_parameters(recommender.backbone)
    embedding = recommender.code_embedding
    levels, codes, e_dim = embedding.tables().shape
    a_token = 4 * frozen + 6 * (learning + embedding.scid_projector.weight.numel())
    a_code = 6 * (embedding.output_projector.weight.numel() + codes * e_dim)
    adapters = nn.ModuleList([recommender.enc_adapter, recommender.dec_adapter])
    a_target = levels * a_code + 6 * linear_parameters(adapters)[1]
    total = 0
    for batch in batches:
        tokens = (batch.items > 0).sum(dim=1) * levels - 1
        pairs = int((tokens * (tokens + 1)).sum()) // 2
        total += int(tokens.sum()) * a_token + len(batch.targets) * a_target
        total += 12 * width * config.num_hidden_layers * pairs
    return total

"""Timing things in turn, and what a machine and a model can do at best."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from recbole_etegrec.recommender import Recommender

_MATRIX = 1024


class Work(NamedTuple):
    """Something to time.

    Attributes:
        run: does it once.
        units: targets, users or the like that it gets through.
        flops: operations that it needs at least, padding not counted.
        small: what warms it up, where doing it once more would take long.
    """

    run: Callable[[], object]
    units: float = 1.0
    flops: float = 0.0
    small: Callable[[], object] | None = None

    def warm_up(self) -> None:
        (self.small or self.run)()


class Timing(NamedTuple):
    """Medians over rounds: seconds of one unit, and operations a second."""

    seconds: float
    flops: float


class Stopwatch:
    """Times works in turn (A B A B ...), so that all see the same machine.

    Args:
        clock: ``wall``, or ``cpu``: seconds of all threads, for a machine that others use too.
        rounds: turns; the medians count.
    """

    def __init__(self, clock: str, rounds: int):
        self.now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
        self.rounds = rounds

    def seconds(self, run: Callable[[], object]) -> float:
        started = self.now()
        run()
        return self.now() - started

    def in_turn(self, works: dict[str, Work]) -> dict[str, Timing]:
        """Timings by name, the machine's matrix product among them as ``matmul``."""
        works = {**works, "matmul": matrix_product()}
        for work in works.values():
            work.warm_up()
        rounds = [
            {name: self.seconds(work.run) for name, work in works.items()}
            for _ in range(self.rounds)
        ]
        timings = {}
        for name, work in works.items():
            seconds = median(turn[name] for turn in rounds)
            timings[name] = Timing(seconds / work.units, work.flops / seconds)
        return timings


def matrix_product() -> Work:
    """Products of large matrices, the most that the machine can do."""
    a, b = torch.randn(2, _MATRIX, _MATRIX)

    def run() -> None:
        for _ in range(4):
            a @ b

    return Work(run, flops=4 * 2 * _MATRIX**3)


def forward_flops(recommender: Recommender, lengths: np.ndarray, targets: int) -> float:
    """Operations of sequences run once, no padding counted: 2 a weight and token, and attention.

    Args:
        lengths: tokens of each sequence ``[B]``.
        targets: items predicted, with the logits of all their codes.
    """
    config, embedding = recommender.backbone.config, recommender.code_embedding
    weights = sum(p.numel() for p in recommender.backbone.parameters() if p.ndim == 2)
    weights += embedding.scid_projector.weight.numel()
    lengths = np.asarray(lengths, dtype=float)
    attended = float((lengths * (lengths + 1) / 2).sum())  # pairs of a token and one it sees
    width = config.num_attention_heads * config.head_dim
    attention = 4 * config.num_hidden_layers * width * attended
    return 2 * weights * lengths.sum() + attention + targets * _head_flops(recommender)


def beam_flops(
    recommender: Recommender, lengths: np.ndarray, num_beams: int, levels: int = 4
) -> float:
    """Operations of a beam search behind a cache: each history once, each beam's codes once."""
    config = recommender.backbone.config
    width = config.num_attention_heads * config.head_dim
    beams = num_beams * (levels - 1) * len(lengths)
    attended = num_beams * (levels - 1) * float(np.sum(lengths))
    weights = sum(p.numel() for p in recommender.backbone.parameters() if p.ndim == 2)
    first = forward_flops(recommender, lengths, 0)
    heads = (beams + len(lengths)) * _head_flops(recommender) / levels
    return first + 2 * weights * beams + 4 * config.num_hidden_layers * width * attended + heads


def _head_flops(recommender: Recommender) -> float:
    """Of the logits of all codes of an item."""
    tables = recommender.code_embedding.tables()
    projector = recommender.code_embedding.output_projector.weight
    return 2 * (len(tables) * projector.numel() + tables.numel())


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """The slope of seconds over sizes in a plot with two logarithmic axes; 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])

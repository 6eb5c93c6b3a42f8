"""Timing things in turn, and what a machine can do at best."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

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


def limits(found: dict[str, Timing]) -> dict:
    """The machine's rate of matrix products, and the share of it that our useful tokens reach."""
    rate = found["matmul"].flops
    return {"matmul_gflops": rate / 1e9, "share": found["ours"].flops / rate}


def against(name: str, found: dict[str, Timing], title: str, unit: str) -> dict:
    """A row of our way beside another, timed in turn."""
    ours, other = found["ours"].seconds, found[name].seconds
    row = {"row": title, "ours": 1 / ours, "other": 1 / other, "unit": unit, "ratio": other / ours}
    return {**row, **limits(found)}


def matrix_product() -> Work:
    """Products of large matrices, the most that the machine can do."""
    a, b = torch.randn(2, _MATRIX, _MATRIX)

    def run() -> None:
        for _ in range(4):
            a @ b

    return Work(run, flops=4 * 2 * _MATRIX**3)


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """The slope of seconds over sizes in a plot with two logarithmic axes; 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])

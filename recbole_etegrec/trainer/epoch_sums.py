"""What the steps of an epoch add up to: kept in checkpoints, averaged in its record."""

import logging
import time

import torch

from recbole_etegrec.data import SequenceBatch
from recbole_etegrec.losses import OBJECTIVES
from recbole_etegrec.trainer.engine import Engine, StepResult
from recbole_etegrec.trainer.memory import memory_gib
from recbole_etegrec.trainer.schedule import Stage

logger = logging.getLogger(__name__)


class EpochSums:
    """Sums of an epoch's losses and gradient norms, and its counts.

    Args:
        engine: its processes share the losses; numbers stay on its device until they are read.
        stage: names what is summed.
        kept: what :meth:`keep` gave of the same epoch, to go on from.
    """

    def __init__(self, engine: Engine, stage: Stage, kept: dict):
        self.engine, self.losses = engine, len(stage.weights)
        self.names = [*stage.weights, *(f"norm_{name}" for name in engine.norm_names(stage))]
        self.reads_tokens = stage.reads_sequences
        counts = {"targets": 0, "tokens": 0, "skipped": 0, "seconds": 0.0}
        self.counts = {name: kept.get(name, start) for name, start in counts.items()}
        start = kept.get("sums", [0.0] * len(self.names))
        self.sums = torch.tensor(start, device=engine.device)
        self.left_out = torch.zeros(2, dtype=torch.long, device=engine.device)  # steps, targets
        self.started = time.perf_counter() - self.counts["seconds"]

    def add(self, result: StepResult, batch: SequenceBatch, code_length: int) -> None:
        """Add a step, of which `batch` is a micro-batch."""
        values = torch.cat([result.losses * batch.divisor, result.norms])
        self.sums += values.masked_fill(result.skipped, 0.0)
        self.left_out[0] += result.skipped
        self.left_out[1] += result.skipped * batch.step_targets
        self.counts["targets"] += batch.step_targets
        if self.reads_tokens:
            self.counts["tokens"] += batch.step_items * code_length
            self.counts["tokens"] += batch.tasks.tokens if batch.tasks else 0

    def keep(self) -> dict:
        """All of it as JSON; every process takes part."""
        processes = self.engine.accelerator.num_processes
        shares = self.engine.sum_over_processes(self.sums[: self.losses]) / processes
        sums = torch.cat([shares, self.sums[self.losses :]]).tolist()
        self._read_counts()
        return {**self.counts, "seconds": time.perf_counter() - self.started, "sums": sums}

    def means(self, steps: int) -> tuple[dict[str, float], dict[str, float]]:
        """Losses by target and norms by step, and the counts; every process takes part."""
        self._read_counts()
        losses = self.engine.sum_over_processes(self.sums[: self.losses])
        losses /= max(self.counts["targets"], 1)
        norms = self.sums[self.losses :] / max(steps - self.counts["skipped"], 1)
        means = torch.cat([losses, norms]).tolist()
        self.counts["seconds"] = time.perf_counter() - self.started  # the read waited for all
        return dict(zip(self.names, means, strict=True)), self.counts

    def _read_counts(self) -> None:
        """Take what was left out since the last time into the counts."""
        steps, targets = self.left_out.tolist()
        self.left_out.zero_()
        self.counts["skipped"] += steps
        self.counts["targets"] -= targets


def log_epoch(record: dict, device: torch.device, of: int, left: str, shown: bool) -> None:
    """One line of what an epoch came to.

    Args:
        of: epochs there are, of its kind.
        left: what is said of the time that is left.
        shown: whether it is one of those that are logged; the others are for those who debug.
    """
    rate = f"{record['tokens'] / record['seconds']:.0f} tokens/s, " if record["tokens"] else ""
    logger.log(
        logging.INFO if shown else logging.DEBUG,
        "epoch %d/%d %s %s: %s, lr %.1e, %.1f s, %smemory %.1f GiB%s",
        record["epoch"] + 1,
        of,
        record["phase"],
        record["trains"],
        ", ".join(f"{name} {record[name]:.4f}" for name in OBJECTIVES if name in record),
        record["lr"],
        record["seconds"],
        rate,
        memory_gib(device),
        left,
    )

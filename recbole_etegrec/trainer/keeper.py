"""What a run must not lose: its records, its best model, and where it stands."""

import logging
from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError

from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.atomic import naming
from recbole_etegrec.storage.digests import tensor_digest
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer import checkpoint
from recbole_etegrec.trainer.checkpoint import Progress, State
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.trackers import curves

logger = logging.getLogger(__name__)


class Keeper:
    """Writes on the main process what all processes take part in gathering.

    Args:
        engine: its model and optimizers are kept.
        run_dir: takes ``metrics.jsonl``, ``best/``, ``last/`` and ``before/``.

    Attributes:
        progress: where the run stands.
        saved: whether models are written; records always are.
        best_state: the best model so far.
        best_description: what it is, as in ``best/model.json``.
        before: both of the model that a guarded phase began with; None where there is none.
    """

    def __init__(self, engine: Engine, run_dir: RunDirectory):
        self.engine, self.accelerator, self.run_dir = engine, engine.accelerator, run_dir
        self.vectors = tensor_digest({"item_embedding": engine.model.item_embedding})
        self.progress = Progress(frozen=engine.model.frozen_digest, vectors=self.vectors)
        self.saved = False
        self.best_state: State | None = None
        self.best_description: dict = {}
        self.best_written = False
        self.before: tuple[State, dict] | None = None

    def record(self, record: dict) -> None:
        """Add a line to ``metrics.jsonl`` and points to the trackers' curves."""
        self.progress.lines += 1
        if self.accelerator.is_main_process:
            self.run_dir.append_metrics(record)
            with naming(self.run_dir.path / "tensorboard"):
                self.accelerator.log(curves(record), step=self.progress.lines)

    def keep_best(self, description: dict) -> None:
        """Take the present model for the best."""
        self.best_state = checkpoint.trained_state(self.engine.model)
        self.best_description = description
        self._write_best()

    def describe_best(self, **more: Any) -> None:
        """Say more of the best model in its description."""
        self.best_description = {**self.best_description, **more}
        self._write_best()

    def keep_before(self) -> None:
        """Keep the best model so far as the one that a phase begins with."""
        self.before = state, description = self.best_state, self.best_description
        self._write(lambda: checkpoint.save_model(state, description, self.run_dir.before))

    def go_back(self) -> None:
        """Take the model that a phase began with for the best again."""
        self.best_state, self.best_description = self.before
        self._write_best()

    def make_sure_of_best(self) -> None:
        """Write ``best/`` where that has not been done or has failed.

        Raises:
            UserError: it fails again.
        """
        if not self.best_written:
            self._write_best()
        if not self.best_written:
            raise UserError(
                f"the best model could not be written to {self.run_dir.best}: make room, then "
                f"go on with --resume={self.run_dir.path}"
            )

    def save_last(self) -> None:
        """Write ``last/``; all processes take part."""
        if not self.saved:
            return
        engine, scaler = self.engine, self.accelerator.scaler
        self.progress.scaler = scaler and scaler.state_dict()
        model = checkpoint.trained_state(engine.model)
        optimizers = checkpoint.optimizer_state(engine.optimizers)
        codes = engine.model.codes.digest()
        self._write(
            lambda: checkpoint.save_last(self.run_dir, model, optimizers, self.progress, codes)
        )

    def resume(self) -> State | None:
        """Take up the newest whole checkpoint, if there is one.

        Returns:
            The states of the optimizers.
        """
        found, optimizers = checkpoint.load_last(self.run_dir), None
        if found is not None:
            state, optimizers, self.progress, best = found
            checkpoint.check_frozen(self.engine.model, self.progress.frozen)
            checkpoint.check_vectors(self.vectors, self.progress.vectors)
            checkpoint.restore(self.engine.model, state)
            if best is not None:
                self.best_state, self.best_description = best
                self.best_written = False  # best/ may be of a later epoch
            if self.run_dir.before.is_dir():
                self.before = checkpoint.read_model(self.run_dir.before)
        if self.accelerator.scaler is not None and self.progress.scaler:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        self.accelerator.wait_for_everyone()  # all have read what is mended now
        if self.accelerator.is_main_process:
            self.run_dir.keep_metrics(self.progress.lines)
            checkpoint.drop_damaged(self.run_dir)
        how = "going on" if found else "no checkpoint, starting anew"
        logger.info("%s from %s", how, self.progress)
        return optimizers

    def _write_best(self) -> None:
        state, description, best = self.best_state, self.best_description, self.run_dir.best
        self.best_written = self._write(lambda: checkpoint.save_model(state, description, best))

    def _write(self, write: Callable[[], None]) -> bool:
        """Write a checkpoint; a full disk must not end a run that could still be saved later."""
        if self.saved and self.accelerator.is_main_process:
            try:
                write()
            except (OSError, SafetensorError) as error:
                logger.error("checkpoint not written (%s); the one before stays", error)
                return False
        return True

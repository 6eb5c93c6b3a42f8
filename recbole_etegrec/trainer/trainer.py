"""The training loop: it runs stages, keeps the best model, stops in time, and can go on later.

One epoch function serves every stage. What a step does, on which devices, is the engine's
business.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.trainer import AbstractTrainer
from recbole.utils import calculate_valid_score, early_stopping
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from recbole_etegrec.config import Config
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.errors import Interrupted
from recbole_etegrec.evaluation.evaluate import evaluate, sample_users
from recbole_etegrec.model.etegrec_llama import ETEGRecLlama
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer import checkpoint
from recbole_etegrec.trainer.checkpoint import Progress
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.epoch_sums import EpochSums, log_epoch
from recbole_etegrec.trainer.interruption import Interruption
from recbole_etegrec.trainer.keeper import Keeper
from recbole_etegrec.trainer.memory import (
    EVALUATION_KNOBS,
    TRAINING_KNOBS,
    out_of_memory_explained,
)
from recbole_etegrec.trainer.pretraining import pretraining_epoch, pretraining_epochs
from recbole_etegrec.trainer.schedule import Stage, alternation, finetuning

logger = logging.getLogger(__name__)

_PRETRAINING_SAVES = 20  # epochs of pretraining, which are short, between two checkpoints
_COLLAPSED = 0.1  # share of a codebook in use, by perplexity, under which it is warned of


class ETEGRecTrainer(AbstractTrainer):
    """Pretrains the tokenizer, alternates, then trains the recommender to convergence.

    Args:
        config: see ``properties/model/ETEGRecLlama.yaml``.
        model: its tokenizer and recommender are trained in place.
        run_dir: takes ``metrics.jsonl``, ``best/`` and ``last/``.
    """

    def __init__(self, config: Config, model: ETEGRecLlama, run_dir: RunDirectory):
        super().__init__(config, model)
        self.run_dir = run_dir
        self.engine = Engine(config, model, run_dir)
        self.accelerator = self.engine.accelerator
        self.interruption = Interruption(self.accelerator)
        self.bigger = config["valid_metric_bigger"]
        self._forget_score()
        self.best_valid_result: dict | None = None
        self.keeper = Keeper(self.engine, run_dir)
        self.resumed_optimizers: checkpoint.State | None = None
        self.train_data = None
        self.show_progress = False

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return self.keeper.progress

    # The story ----------------------------------------------------------------------------------

    def fit(
        self,
        train_data: SequenceLoader,
        valid_data: AbstractDataLoader | None = None,
        saved: bool = True,
        show_progress: bool = False,
        resume: bool = False,
    ) -> tuple[float | None, dict | None]:
        """Train.

        Args:
            saved: whether ``best/`` and ``last/`` are written.
            resume: go on from ``last/``, if there is one.

        Returns:
            The best validation score and the result it belongs to, over all users of
            ``valid_data``; None without it.

        Raises:
            Interrupted: by SIGINT or SIGTERM; ``last/`` tells where the run stands.
            TrainingError: losses stay non-finite, or memory is short.
        """
        config, main = self.config, self.accelerator.is_main_process
        self.keeper.saved, self.show_progress = saved, show_progress and main
        self.train_data, self.valid_data = train_data, valid_data
        train_data.split(
            config["gradient_accumulation_steps"],
            self.accelerator.num_processes,
            self.accelerator.process_index,
        )
        self.valid_sample = sample_users(config, valid_data, config["valid_users"])
        self.accelerator.init_trackers("")
        untrained = {}
        if config["restart_recommender"]:
            untrained = checkpoint.trained_state(self.model, ("recommender.",))
        if resume:
            self._resume()
        with self.interruption:
            if self.progress.phase == "pretraining":
                self._pretrain()
                self._match_scale()
                self.progress.enter("alternation")
            if self.progress.phase == "alternation":
                self._run(self._alternation(), config["learning_rate"], _constant)
                if self.keeper.best_state is not None:
                    checkpoint.restore(self.model, self.keeper.best_state)
                if untrained:
                    self._restart_recommender(untrained)
                self.progress.enter("finetune")
            final = finetuning(epochs=config["finetune_epochs"], eval_step=config["eval_step"])
            self._run(list(final), config["finetune_learning_rate"], _cosine)
            if self.keeper.best_state is None:  # no stage was evaluated: the present model is best
                self._keep_best({})
            self.keeper.make_sure_of_best()
            checkpoint.restore(self.model, self.keeper.best_state)
            if valid_data is None:
                return None, None
            self.best_valid_result = self._evaluate(valid_data, "Validation, all users")
        self.best_valid_score = self._score(self.best_valid_result)
        return self.best_valid_score, self.best_valid_result

    def evaluate(
        self,
        eval_data: AbstractDataLoader,
        load_best_model: bool = True,
        show_progress: bool = False,
    ) -> dict[str, float]:
        """Metrics on a loader's users, of the best model or of the present one."""
        self.show_progress = show_progress and self.accelerator.is_main_process
        if load_best_model and self.keeper.best_state is not None:
            checkpoint.restore(self.model, self.keeper.best_state)
        elif load_best_model:
            checkpoint.load_model(self.model, self.run_dir.best)
        return self._evaluate(eval_data, "Evaluate")

    def finish(self, test_result: dict[str, float]) -> None:
        """Close the trackers, which get the last result."""
        self.accelerator.log({f"test/{name}": value for name, value in test_result.items()})
        for tracker in self.accelerator.trackers:
            tracker.finish()

    # Stages -------------------------------------------------------------------------------------

    def _pretrain(self) -> None:
        """Pretrain the tokenizer on the main process, then give every process the result."""
        config, progress, model = self.config, self.progress, self.model
        epochs = pretraining_epochs(config, model)
        if self.accelerator.is_main_process and epochs:
            optimizer = self.engine.optimizers["tokenizer"]
            self._start_optimizer("tokenizer", config["tokenizer_learning_rate"])
            model.tokenizer.requires_grad_(True).train()
            title = "Tokenizer pretraining"
            bar = tqdm(
                range(progress.index, epochs),
                title,
                epochs,
                initial=progress.index,
                disable=not self.show_progress,
                ncols=100,
            )
            for epoch in bar:
                record = pretraining_epoch(
                    model,
                    optimizer,
                    batch_size=config["tokenizer_batch_size"],
                    seed=seed_of(config["seed"], epoch),
                    revive=epoch < epochs - 1,
                )
                self.keeper.record({"phase": "pretraining", "epoch": epoch, **record})
                bar.set_postfix(error=f"{record['reconstruction']:.4f}")
                progress.index = epoch + 1
                if progress.index % _PRETRAINING_SAVES == 0:
                    self.keeper.save_last(("tokenizer.", "codes."))
            model.tokenizer.requires_grad_(False).eval()
        self.resumed_optimizers = None
        self.engine.share(model.tokenizer)
        self.keeper.record({"phase": "codes", **self._rebuild_codes()})

    def _match_scale(self) -> None:
        if self.config["projector_init"] == "matched":
            self.engine.match_scale(self.train_data.first_step())

    def _restart_recommender(self, untrained: checkpoint.State) -> None:
        """Make the recommender what it was at the start, on the present codes and codebooks."""
        checkpoint.restore(self.model, untrained)
        self.model.copy_codebooks(to="recommender")
        self._match_scale()
        self._forget_score()

    def _forget_score(self) -> None:
        """Let the next evaluated model be better than those before."""
        self.best_valid_score = -float("inf") if self.bigger else float("inf")

    def _alternation(self) -> list[Stage]:
        keys = ("epochs", "cycle_epochs", "warm_epochs", "sia_weight", "psa_weight", "joint")
        return list(alternation(**{key: self.config[key] for key in keys}))

    def _run(self, stages: list[Stage], learning_rate: float, make_scheduler: Callable) -> None:
        """Run stages in turn until they end or the validation metric has stopped improving."""
        progress = self.progress
        if not stages[progress.index :]:
            return
        schedulers = self._start_optimizers(stages, learning_rate, make_scheduler)
        for stage in stages[progress.index :]:
            if not progress.trained:
                self._train_epoch(stage, [schedulers[part.trains] for part in stage.parts])
            record, stop = progress.epoch["record"], False
            if stage.evaluate and self.valid_data is not None:
                result = self._evaluate(self.valid_sample, "Validation")
                record["valid_result"] = result
                self.best_valid_score, progress.stale, stop, better = early_stopping(
                    self._score(result),
                    self.best_valid_score,
                    progress.stale,
                    self.config["stopping_step"],
                    self.bigger,
                )
                logger.info("valid %s %s", result, "(best)" if better else "")
                if better:
                    self._keep_best(result)
            self.keeper.record(record)
            progress.index += 1
            progress.epochs_done += 1
            progress.step, progress.trained, progress.epoch = 0, False, {}
            if stop:
                logger.info("%s: no better %s, stopped", stage.phase, self.config["valid_metric"])
                return

    def _start_optimizers(self, stages: list[Stage], learning_rate: float, make_scheduler) -> dict:
        """Fresh optimizer states, or resumed ones, and schedules of each module's own steps."""
        progress = self.progress
        steps = dict.fromkeys(self.engine.optimizers, 0)
        for epoch, stage in enumerate(stages, progress.epochs_done - progress.index):
            self.train_data.draw(epoch)
            for part in stage.parts:
                steps[part.trains] += len(self.train_data)
        rates = {
            "tokenizer": self.config["alternation_tokenizer_learning_rate"],
            "recommender": learning_rate,
        }
        schedulers = {}
        if progress.index == progress.step == 0 and not progress.trained:
            progress.schedule = dict.fromkeys(rates, 0)
        for name, rate in rates.items():
            self._start_optimizer(name, rate)
            warmup = self.config["warmup_steps"]
            warmup = warmup if warmup >= 1 else round(warmup * steps[name])
            schedulers[name] = make_scheduler(
                self.engine.bare_optimizer(name),
                warmup,
                max(steps[name], 1),
                progress.schedule[name] - 1,
            )
        self.resumed_optimizers = None
        return schedulers

    def _start_optimizer(self, name: str, learning_rate: float) -> None:
        optimizer = self.engine.optimizers[name]
        optimizer.state.clear()
        for group in optimizer.param_groups:
            rate = self.config["heads_learning_rate"] if group.get("heads") else None
            group["lr"] = group["initial_lr"] = rate or learning_rate
        if self.resumed_optimizers is not None:
            checkpoint.restore_optimizers({name: optimizer}, self.resumed_optimizers)

    def _train_epoch(self, stage: Stage, schedulers: list[LambdaLR]) -> None:
        """One pass over the training sequences; `progress.epoch` ends up with its record."""
        progress, engine = self.progress, self.engine
        engine.freeze_all_but(stage.trains)
        self.train_data.draw(progress.epochs_done)
        sums, first = EpochSums(engine, stage, progress.epoch), progress.step
        bar = tqdm(
            self.train_data.iterate(first),
            f"Epoch {progress.epochs_done} {stage.phase}: {stage.trains}",
            len(self.train_data),
            initial=first,
            disable=not self.show_progress,
            ncols=100,
        )
        with (
            self.interruption.waiting(),
            out_of_memory_explained(f"{stage.phase} ({stage.trains})", TRAINING_KNOBS),
        ):
            for step, micro_batches in enumerate(bar, first):
                rank = self.accelerator.process_index  # each has dropout of its own
                torch.manual_seed(seed_of(self.config["seed"], progress.epochs_done, step, rank))
                result = engine.step(micro_batches, stage)
                sums.add(result, micro_batches[0], self.config["code_length"])
                for part, scheduler in zip(stage.parts, schedulers, strict=True):
                    if not result.skipped:
                        scheduler.step()
                    progress.schedule[part.trains] = scheduler.last_epoch
                progress.step = step + 1
                number, every = self.interruption.requested(), self.config["save_steps"]
                if number or (every and progress.step % every == 0):
                    progress.epoch = sums.keep()
                    self.keeper.save_last()
                if number:
                    raise Interrupted(number, f"stopped at {progress}")
        means, counts = sums.means(len(self.train_data))
        if stage.shares_codebooks and self.config["codebook_update"] == "shared":
            self.model.copy_codebooks(to="tokenizer")
        record = {
            "epoch": progress.epochs_done,
            "phase": stage.phase,
            "trains": stage.trains,
            **means,
            "lr": schedulers[-1].get_last_lr()[0],
            **counts,
        }
        log_epoch(record, engine.device)
        if stage.rebuild_codes:
            record.update(self._rebuild_codes())
        progress.trained, progress.epoch = True, {"record": record}
        self.keeper.save_last()

    # Codes --------------------------------------------------------------------------------------

    def _rebuild_codes(self) -> dict:
        """New codes for all items, the same on every process; returns their health."""
        health = replace(self.engine.set_codes(), **self.model.fidelity())
        logger.info("codes: %s", health)
        for level, perplexity in enumerate(health.perplexity):
            if perplexity < _COLLAPSED * min(self.config["code_num"], self.model.n_items - 1):
                logger.warning(
                    "codebook %d has collapsed: its items use as many codes as %.1f of equal use "
                    "would be (%d there are); lower the learning rates of the tokenizer",
                    level,
                    perplexity,
                    self.config["code_num"],
                )
        return health.record()

    # Validation ---------------------------------------------------------------------------------

    def _evaluate(self, loader: AbstractDataLoader, title: str) -> dict:
        with out_of_memory_explained(title.lower(), EVALUATION_KNOBS):
            return evaluate(
                self.model,
                loader,
                (self.train_data or loader)._dataset,
                self.config,
                show_progress=self.show_progress,
                title=title,
            )

    def _score(self, result: dict) -> float:
        return calculate_valid_score(result, self.config["valid_metric"].lower())

    def _keep_best(self, result: dict) -> None:
        self.best_valid_result = result
        self.keeper.keep_best(
            {
                "model": self.config["model"],
                "dataset": self.config["dataset"],
                "epoch": self.progress.epochs_done,
                "phase": self.progress.phase,
                "codes": self.model.codes.digest(),
                "frozen": self.model.frozen_digest,
                "valid_result": result,
            }
        )

    def _resume(self) -> None:
        self.resumed_optimizers = self.keeper.resume()
        best, phase = self.keeper.best_description, self.progress.phase
        if self.config["restart_recommender"] and phase != best.get("phase"):
            return  # it was the recommender before the restart
        if result := best.get("valid_result"):
            self.best_valid_result, self.best_valid_score = result, self._score(result)


def _constant(optimizer, warmup: int, _steps: int, last: int = -1) -> LambdaLR:
    return get_constant_schedule_with_warmup(optimizer, warmup, last_epoch=last)


def _cosine(optimizer, warmup: int, steps: int, last: int = -1) -> LambdaLR:
    return get_cosine_schedule_with_warmup(optimizer, warmup, steps, last_epoch=last)


def seed_of(*numbers: int) -> int:
    """A seed that follows from a seed and the place it is used at."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])

"""The training loop: it runs phases, keeps the best model, stops in time, and can go on later.

One epoch function serves every stage of every phase. What a step does, on which devices, is the
engine's business.
"""

import logging
import time

import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.trainer import AbstractTrainer
from recbole.utils import calculate_valid_score, early_stopping
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from recbole_etegrec.config import Config
from recbole_etegrec.data.item_loader import ItemLoader, seed_of
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.data.tasks.loader import TaskLoader
from recbole_etegrec.errors import Interrupted, UserError
from recbole_etegrec.evaluation.evaluate import (
    VALIDATED,
    evaluate,
    evaluate_each,
    sample_users,
    told_sample,
)
from recbole_etegrec.model.etegrec_llama import ETEGRecLlama
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer import checkpoint
from recbole_etegrec.trainer.checkpoint import Progress
from recbole_etegrec.trainer.codes import follow_up, rebuild_codes
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.epoch_sums import EpochSums, log_epoch
from recbole_etegrec.trainer.gradient_shares import gradient_shares
from recbole_etegrec.trainer.interruption import Interruption
from recbole_etegrec.trainer.keeper import Keeper
from recbole_etegrec.trainer.memory import (
    EVALUATION_KNOBS,
    TRAINING_KNOBS,
    out_of_memory_explained,
)
from recbole_etegrec.trainer.optimizers import make_scheduler
from recbole_etegrec.trainer.outlook import Outlook
from recbole_etegrec.trainer.preference import Preferences
from recbole_etegrec.trainer.schedule import Phase, Stage, phases_of

logger = logging.getLogger(__name__)

Loader = SequenceLoader | ItemLoader | TaskLoader


class ETEGRecTrainer(AbstractTrainer):
    """Runs the phases of a schedule: by default the tokenizer's pretraining, alternation, the end.

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
        self.loaders: dict[str, Loader] = {}
        self.valid_data = None
        self.untrained: checkpoint.State = {}
        self.outlook = Outlook(phases_of(config))
        self.preferences: Preferences | None = None
        if any(phase.guarded for phase in self.outlook.phases):
            self.preferences = Preferences(config, self.engine, self.keeper)
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
        self.keeper.saved = saved
        self.show_progress = show_progress and self.accelerator.is_main_process
        self.use_data(train_data, valid_data)
        self.accelerator.init_trackers("")
        phases = self.outlook.phases
        logger.info("%s", self.outlook)
        if any(phase.starts_from == "fresh" for phase in phases):
            self.untrained = checkpoint.trained_state(self.model, ("recommender.",))
        begun = self._resume(phases) if resume else 0
        sequences = [phase.name for phase in phases if phase.loader != "items"]
        with self.interruption:
            for phase in phases[begun:]:
                if phase.name != self.progress.phase:
                    if phase.name in sequences[:1] and not self.config["preference_from"]:
                        self.settle_codes()
                    self._enter(phase)
                self.run_phase(phase)
            if not sequences:
                self.settle_codes()
            if self.keeper.best_state is None:  # no stage was evaluated: the present model is best
                self._keep_best({})
            self.keeper.make_sure_of_best()
            checkpoint.restore(self.model, self.keeper.best_state)
            if valid_data is None:
                return None, None
            self.best_valid_result = self._settle_best(self.valid_data)
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

    # Phases -------------------------------------------------------------------------------------

    def use_data(
        self, train_data: SequenceLoader, valid_data: AbstractDataLoader | None = None
    ) -> None:
        """Take the data that phases go over, this process its share."""
        config = self.config
        items = ItemLoader(
            self.model.n_items, batch_size=config["tokenizer_batch_size"], seed=config["seed"]
        )
        self.loaders = {"sequences": train_data, "items": items}
        if train_data.tasks is not None:
            self.loaders["tasks"] = TaskLoader(train_data.tasks)
        for loader in self.loaders.values():
            loader.split(
                config["gradient_accumulation_steps"],
                self.accelerator.num_processes,
                self.accelerator.process_index,
            )
        self.valid_data = told_sample(config, valid_data, VALIDATED, "validation")
        self.valid_sample = sample_users(config, valid_data, config["valid_users"])

    def settle_codes(self) -> None:
        """Give items the codes that the recommender will first meet, and fit its scale to them."""
        self.keeper.record({"phase": "codes", **rebuild_codes(self.engine)})
        self.model.copy_codebooks(to="recommender")
        self._match_scale()

    def _match_scale(self) -> None:
        if self.config["projector_init"] == "matched":
            self.engine.match_scale(self.loaders["sequences"].first_part())

    def _enter(self, phase: Phase) -> None:
        """Begin a phase, with the weights that it starts from."""
        if phase.starts_from != "last" and self.keeper.best_state is not None:
            checkpoint.restore(self.model, self.keeper.best_state)
        if phase.starts_from == "fresh":
            checkpoint.restore(self.model, self.untrained)
            self.model.copy_codebooks(to="recommender")
            self._match_scale()
            self._forget_score()
        self.progress.enter(phase.name, self.progress.epochs_done if phase.loader != "items" else 0)
        if phase.guarded:
            self.begin_guarded()

    def begin_guarded(self) -> None:
        """Measure and keep the model that a guarded phase begins with."""
        if self.keeper.best_state is None:
            self._keep_best({})
        if self.valid_data is not None:
            settled = self._settle_ranking(self.valid_data)
            result = self._evaluate(self.valid_sample, "Validation", self.preferences.config)
            self.best_valid_result, self.best_valid_score = result, self._score(result)
            self.keeper.describe_best(valid_result=result, settled=self._score(settled))
        self.preferences.begin()

    def _forget_score(self) -> None:
        """Let the next evaluated model be better than those before."""
        self.best_valid_score = -float("inf") if self.bigger else float("inf")

    def run_phase(self, phase: Phase) -> None:
        """Run stages in turn until they end or the validation metric has stopped improving."""
        progress = self.progress
        if not phase.stages[progress.index :]:
            return
        loader = self.loaders[phase.loader]
        schedulers = self._start_optimizers(phase, loader)
        for stage in phase.stages[progress.index :]:
            if not progress.trained:
                self._train_epoch(
                    phase, stage, loader, [schedulers[part.trains] for part in stage.parts]
                )
            record, stop = progress.epoch["record"], False
            if stage.evaluate and self.valid_data is not None:
                record["valid_result"], stop = self._validate(phase)
            self.keeper.record(record)
            progress.index += 1
            progress.epochs_done += phase.loader != "items"
            progress.step, progress.trained, progress.epoch = 0, False, {}
            if stop:
                logger.info("%s: no better %s, stopped", phase.name, self.config["valid_metric"])
                break
        self.engine.freeze_all_but(None)

    def _start_optimizers(self, phase: Phase, loader: Loader) -> dict[str, LambdaLR]:
        """Fresh optimizer states, or resumed ones, and schedules of each module's own steps."""
        progress = self.progress
        steps = dict.fromkeys(self.engine.optimizers, 0)
        for epoch, stage in enumerate(phase.stages, progress.first):
            loader.draw(epoch)
            for part in stage.parts:
                steps[part.trains] += len(loader)
        schedulers = {}
        if progress.index == progress.step == 0 and not progress.trained:
            progress.rate_steps = dict.fromkeys(phase.learning_rates, 0)
        for name, rate in phase.learning_rates.items():
            optimizer = self.engine.start_optimizer(name, rate, heads_rate=phase.heads_rate)
            if self.resumed_optimizers is not None:
                checkpoint.restore_optimizers({name: optimizer}, self.resumed_optimizers)
            warmup = phase.warmup if phase.warmup >= 1 else round(phase.warmup * steps[name])
            schedulers[name] = make_scheduler(
                phase.course,
                self.engine.bare_optimizer(name),
                warmup,
                max(steps[name], 1),
                progress.rate_steps[name] - 1,
            )
        self.resumed_optimizers = None
        return schedulers

    # Epochs -------------------------------------------------------------------------------------

    def _train_epoch(
        self,
        phase: Phase,
        stage: Stage,
        loader: Loader,
        schedulers: list[LambdaLR],
    ) -> None:
        """One pass over a loader; `progress.epoch` ends up with its record."""
        progress, engine = self.progress, self.engine
        engine.freeze_all_but(stage.trains)
        loader.draw(progress.number)
        sums, first = EpochSums(engine, stage, progress.epoch), progress.step
        if phase.guarded:
            self.preferences.begin_epoch(progress.epoch)
        bar = tqdm(
            loader.iterate(first),
            f"Epoch {progress.number + 1} {stage.phase}: {stage.trains}",
            len(loader),
            initial=first,
            leave=stage.save and phase.loader != "items",
            disable=not self.show_progress,
            ncols=100,
        )
        with (
            self.interruption.waiting(),
            out_of_memory_explained(f"{stage.phase} ({stage.trains})", TRAINING_KNOBS),
        ):
            for step, micro_batches in enumerate(bar, first):
                micro_batches = self._with_groups(micro_batches, phase, stage, step)
                self._seed(step)
                result = engine.step(micro_batches, stage)
                sums.add(result, micro_batches[0], self.config["code_length"])
                for part, scheduler in zip(stage.parts, schedulers, strict=True):
                    scheduler.step()
                    progress.rate_steps[part.trains] = scheduler.last_epoch
                progress.step = step + 1
                number, every = self.interruption.requested(), self.config["save_steps"]
                if number or (every and progress.step % every == 0):
                    progress.epoch = sums.keep()
                    if phase.guarded:
                        progress.epoch |= self.preferences.keep()
                    self.keeper.save_last()
                if number:
                    raise Interrupted(number, f"stopped at {progress}")
        engine.read_results()
        means, counts = sums.means(len(loader))
        record = {
            "epoch": progress.number,
            "phase": stage.phase,
            "trains": stage.trains,
            **means,
            **(self.preferences.summary() if phase.guarded else {}),
            "lr": schedulers[-1].get_last_lr()[0],
            **counts,
        }
        self.outlook.note(stage.trains, record["seconds"])
        sequences = phase.loader != "items"
        log_epoch(
            record,
            engine.device,
            self.outlook.epochs if sequences else len(phase.stages),
            self.outlook.left(phase.name, progress.index + 1) if sequences else "",
            shown=sequences or progress.index + 1 == len(phase.stages),
        )
        record |= self._gradient_shares(phase, stage, loader)
        record |= follow_up(engine, stage, loader)
        progress.trained, progress.epoch = True, {"record": record}
        if stage.save:
            self.keeper.save_last()

    def _seed(self, step: int) -> None:
        """Let the dropout of a step follow from its number; each process has its own."""
        rank = self.accelerator.process_index
        torch.manual_seed(seed_of(self.config["seed"], self.progress.number, step, rank))

    def _with_groups(
        self, micro_batches: list, phase: Phase, stage: Stage, step: int, *, seen: bool = True
    ) -> list:
        """The micro-batches of a step with candidates, where the stage reads any."""
        if not stage.reads_groups:
            return micro_batches
        progress, steps = self.progress, len(self.loaders[phase.loader])
        share = (progress.index + min(step, steps) / steps) / len(phase.stages)
        seed = seed_of(self.config["seed"], progress.number, step)
        return self.preferences.with_groups(micro_batches, share, seed, seen=seen)

    def _gradient_shares(self, phase: Phase, stage: Stage, loader: Loader) -> dict[str, float]:
        """What :func:`gradient_shares` finds at the end of an epoch, on its first step."""
        if not stage.reads_sequences:
            return {}
        self._seed(len(loader))
        with out_of_memory_explained(f"{stage.phase} ({stage.trains})", TRAINING_KNOBS):
            first = self._with_groups(next(loader.iterate()), phase, stage, 0, seen=False)
            return gradient_shares(self.engine, first, stage)

    # Validation ---------------------------------------------------------------------------------

    def _validate(self, phase: Phase) -> tuple[dict, bool]:
        """The present model's metrics on the sample of users, and whether to stop."""
        started, progress = time.perf_counter(), self.progress
        config = self.preferences.config if phase.guarded else self.config
        result = self._evaluate(self.valid_sample, "Validation", config)
        self.outlook.note("evaluation", time.perf_counter() - started)
        score, best, faults = self._score(result), self.best_valid_score, []
        if phase.guarded:
            faults = self.preferences.faults(result, progress.epoch["record"])
        if faults:
            logger.warning("%s: %s: stopped", phase.name, "; ".join(faults))
            return result, True
        self.best_valid_score, progress.stale, stop, better = early_stopping(
            score, best, progress.stale, self.config["stopping_step"], self.bigger
        )
        better = better and (not phase.guarded or self._better(score, best))
        shown = ", ".join(f"{name} {value:.4f}" for name, value in result.items())
        logger.info("valid %s%s", shown, " (best)" if better else "")
        if better:
            self._keep_best(result)
        return result, stop

    def _better(self, score: float, other: float) -> bool:
        return score > other if self.bigger else score < other

    def _evaluate(
        self, loader: AbstractDataLoader, title: str, config: Config | None = None
    ) -> dict:
        with out_of_memory_explained(title.lower(), EVALUATION_KNOBS):
            return evaluate(
                self.model,
                loader,
                self.loaders.get("sequences", loader)._dataset,
                config or self.config,
                show_progress=self.show_progress,
                title=title,
            )

    def _settle_best(self, valid_data: AbstractDataLoader) -> dict:
        """Metrics of the best model; that of before, where a guarded phase has found no better."""
        result = self._settle_ranking(valid_data)
        if self.preferences is None:
            return result
        then, now = self.preferences.before["settled"], self._score(result)
        told = f"{self.config['valid_metric']} {then:.4f} before, {now:.4f} after"
        if "settled" not in self.keeper.best_description and self._better(now, then):
            epoch = self.keeper.best_description["epoch"] + 1
            logger.info("preference: the model of epoch %d is kept (%s)", epoch, told)
            return result
        if "settled" in self.keeper.best_description:
            told = f"none was better than its {self.config['valid_metric']} {then:.4f}"
        logger.info("preference: the model before is kept (%s)", told)
        self.keeper.go_back()
        checkpoint.restore(self.model, self.keeper.best_state)
        return self._settle_ranking(valid_data)

    def _settle_ranking(self, valid_data: AbstractDataLoader) -> dict:
        """Metrics of the best model, with what its ranker has left to validation chosen by them."""
        ranker, title = self.model.ranker, "Validation, all users"
        trials = ranker.trials()
        if not trials:
            return self._evaluate(valid_data, title)
        with out_of_memory_explained(title.lower(), EVALUATION_KNOBS):
            results = evaluate_each(
                self.model,
                trials,
                valid_data,
                self.loaders["sequences"]._dataset,
                self.config,
                show_progress=self.show_progress,
                title=title,
            )
        best = (max if self.bigger else min)(
            range(len(trials)), key=lambda number: self._score(results[number])
        )
        ranker.take(trials[best].chosen)
        chosen = ", ".join(f"{key} {value}" for key, value in ranker.chosen.items())
        logger.info("ranking: %s, chosen on validation", chosen)
        self.keeper.describe_best(ranking=ranker.chosen)
        return results[best]

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

    def _resume(self, phases: list[Phase]) -> int:
        """Take up the newest checkpoint; returns the number of the phase that it stands in.

        Raises:
            UserError: the schedule has no such phase.
        """
        self.resumed_optimizers = self.keeper.resume()
        stands, best = self.progress.phase, self.keeper.best_description
        names = [phase.name for phase in phases]
        if not stands:
            return 0
        if stands not in names:
            raise UserError(
                f"resume: the run in {self.run_dir.path} stands in a phase '{stands}', and "
                f"schedule ({names}) has none: give the schedule that it began with"
            )
        index = names.index(stands)
        if phases[index].guarded:
            self.preferences.take_up()
        fresh = [n for n, one in enumerate(phases[: index + 1]) if one.starts_from == "fresh"]
        # A best model of before a new recommender began has no say in what comes after.
        counts = best.get("phase") in names[max(fresh, default=0) : index + 1]
        if counts and (result := best.get("valid_result")):
            self.best_valid_result, self.best_valid_score = result, self._score(result)
        return index

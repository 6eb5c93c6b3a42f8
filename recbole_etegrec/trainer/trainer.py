"""The training loop: it runs stages, keeps the best model, and stops in time.

One epoch function serves every stage. Devices, precision and processes are accelerate's
business, through one ``Accelerator``.
"""

import logging
import time

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.trainer import AbstractTrainer
from recbole.utils import calculate_valid_score, early_stopping
from tqdm import tqdm
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from recbole_etegrec.config import Config
from recbole_etegrec.data import SequenceBatch
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.model.etegrec_llama import ETEGRecLlama, Losses
from recbole_etegrec.run_directory import RunDirectory
from recbole_etegrec.trainer.checkpoint import load_model, restore, save_model, trained_state
from recbole_etegrec.trainer.evaluation import evaluate, sample_users
from recbole_etegrec.trainer.pretraining import pretrain_tokenizer
from recbole_etegrec.trainer.schedule import Stage, alternation, finetuning

logger = logging.getLogger(__name__)

_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class ETEGRecTrainer(AbstractTrainer):
    """Pretrains the tokenizer, alternates, then trains the recommender to convergence.

    Args:
        config: see ``properties/model/ETEGRecLlama.yaml``.
        model: its tokenizer and recommender are trained in place.
        run_dir: takes ``metrics.jsonl`` and ``best/``.
    """

    def __init__(self, config: Config, model: ETEGRecLlama, run_dir: RunDirectory):
        super().__init__(config, model)
        self.run_dir = run_dir
        AcceleratorState._reset_state()  # an earlier run of this process may differ
        self.accelerator = Accelerator(
            mixed_precision=_PRECISION[config["precision"]], cpu=not config["use_gpu"]
        )
        model.to(self.accelerator.device)
        self.bigger = config["valid_metric_bigger"]
        self.best_valid_score = -float("inf") if self.bigger else float("inf")
        self.best_valid_result: dict | None = None
        self.best_state: dict[str, torch.Tensor] | None = None
        self.epochs_done = 0
        self.train_data = None
        # Both modules are prepared with all that they train; stages freeze them as a whole.
        model.tokenizer.requires_grad_(True)
        tokenizer_optimizer = torch.optim.AdamW(
            model.tokenizer.parameters(),
            lr=config["alternation_tokenizer_learning_rate"],
            weight_decay=0.0,
        )
        recommender_optimizer = torch.optim.AdamW(
            decay_groups(model.recommender, config["weight_decay"]), lr=config["learning_rate"]
        )
        self.parameters = {
            name: [p for p in getattr(model, name).parameters() if p.requires_grad]
            for name in ("tokenizer", "recommender")
        }
        prepared = self.accelerator.prepare(
            model.tokenizer, model.recommender, tokenizer_optimizer, recommender_optimizer
        )
        self.modules = {"tokenizer": prepared[0], "recommender": prepared[1]}
        self.optimizers = {"tokenizer": prepared[2], "recommender": prepared[3]}
        model.tokenizer.requires_grad_(False)

    # The story ----------------------------------------------------------------------------------

    def fit(
        self,
        train_data: SequenceLoader,
        valid_data: AbstractDataLoader | None = None,
        saved: bool = True,
        show_progress: bool = False,
    ) -> tuple[float | None, dict | None]:
        """Train.

        Returns:
            The best validation score and the result it belongs to, over all users of
            ``valid_data``; None without it.
        """
        config = self.config
        self.saved, self.show_progress = saved, show_progress
        self.train_data = train_data
        self.batches = self.accelerator.prepare_data_loader(train_data)
        self.valid_data = valid_data
        self.valid_sample = sample_users(config, valid_data, config["valid_users"])
        if config["tokenizer_epochs"]:
            pretrain_tokenizer(
                self.model,
                epochs=config["tokenizer_epochs"],
                batch_size=config["tokenizer_batch_size"],
                learning_rate=config["tokenizer_learning_rate"],
                seed=config["seed"],
                record=self.run_dir.append_metrics,
                show_progress=show_progress,
            )
        cycles = alternation(
            epochs=config["epochs"],
            cycle_epochs=config["cycle_epochs"],
            warm_epochs=config["warm_epochs"],
            sia_weight=config["sia_weight"],
            psa_weight=config["psa_weight"],
        )
        self._run(list(cycles), config["learning_rate"], get_constant_schedule_with_warmup)
        if self.best_state is not None:
            restore(self.model, self.best_state)
        final = finetuning(epochs=config["finetune_epochs"], eval_step=config["eval_step"])
        self._run(list(final), config["finetune_learning_rate"], get_cosine_schedule_with_warmup)
        if self.best_state is None:  # no stage was evaluated: the present model is the best
            self._keep_best({})
        restore(self.model, self.best_state)
        if valid_data is None:
            return None, None
        self.best_valid_result = self._evaluate(valid_data, "Validation, all users")
        self.best_valid_score = calculate_valid_score(
            self.best_valid_result, config["valid_metric"].lower()
        )
        return self.best_valid_score, self.best_valid_result

    @torch.no_grad()
    def evaluate(
        self,
        eval_data: AbstractDataLoader,
        load_best_model: bool = True,
        show_progress: bool = False,
    ) -> dict[str, float]:
        """Metrics on a loader's users, of the best model or of the present one."""
        self.show_progress = show_progress
        if load_best_model:
            load_model(self.model, self.run_dir.best)
        return self._evaluate(eval_data, "Evaluate")

    # Stages -------------------------------------------------------------------------------------

    def _run(self, stages: list[Stage], learning_rate: float, make_scheduler) -> None:
        """Run stages in turn until they end or the validation metric has stopped improving."""
        if not stages:
            return
        schedulers = self._start_optimizers(stages, learning_rate, make_scheduler)
        stale = 0
        for stage in stages:
            record = self._train_epoch(stage, schedulers[stage.trains])
            if stage.rebuild_codes:
                health = self.model.rebuild_codes()
                logger.info("codes: %s", health)
                record.update(vars(health))
            stop = False
            if stage.evaluate and self.valid_data is not None:
                result = self._evaluate(self.valid_sample, "Validation")
                record["valid_result"] = dict(result)
                score = calculate_valid_score(result, self.config["valid_metric"].lower())
                self.best_valid_score, stale, stop, better = early_stopping(
                    score, self.best_valid_score, stale, self.config["stopping_step"], self.bigger
                )
                logger.info("valid %s %s", result, "(best)" if better else "")
                if better:
                    self._keep_best(result)
            self.run_dir.append_metrics(record)
            self.epochs_done += 1
            if stop:
                logger.info("%s: no better %s, stopped", stage.phase, self.config["valid_metric"])
                return

    def _start_optimizers(self, stages, learning_rate: float, make_scheduler) -> dict:
        """Fresh optimizer state, and a scheduler sized to the steps that each module will take."""
        steps = dict.fromkeys(self.optimizers, 0)
        for epoch, stage in enumerate(stages, self.epochs_done):
            self.train_data.draw(epoch)
            steps[stage.trains] += len(self.batches)
        schedulers = {}
        for name, optimizer in self.optimizers.items():
            optimizer.state.clear()
            rate = learning_rate
            if name == "tokenizer":
                rate = self.config["alternation_tokenizer_learning_rate"]
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] = rate
            arguments = {"num_warmup_steps": self.config["warmup_steps"]}
            if make_scheduler is get_cosine_schedule_with_warmup:
                arguments["num_training_steps"] = max(steps[name], 1)
            schedulers[name] = make_scheduler(optimizer.optimizer, **arguments)
        return schedulers

    def _train_epoch(self, stage: Stage, scheduler) -> dict:
        """One pass over the training sequences; returns the record of the epoch."""
        self._freeze_all_but(stage.trains)
        self.train_data.draw(self.epochs_done)
        # Sums stay on the device: reading one would make every step wait for it.
        sums = torch.zeros(len(Losses._fields), device=self.accelerator.device)
        targets = tokens = 0
        start = time.perf_counter()
        title = f"Epoch {self.epochs_done} {stage.phase}: {stage.trains}"
        for batch in tqdm(self.batches, desc=title, disable=not self.show_progress, ncols=100):
            sums += self._step(batch, stage, scheduler) * len(batch.targets)
            targets += len(batch.targets)
            tokens += batch.items.numel() * self.config["code_length"]
        means = dict(zip(Losses._fields, (sums / targets).tolist(), strict=True))
        seconds = time.perf_counter() - start  # after the read above, which waits for the device
        if stage.shares_codebooks and self.config["codebook_update"] == "shared":
            self.model.copy_codebooks(to="tokenizer")
        text = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        rate = scheduler.get_last_lr()[0]
        logger.info(
            "epoch %d %s %s: %s, lr %.1e, %.1f s, %.0f tokens/s, memory %.1f GiB",
            self.epochs_done,
            stage.phase,
            stage.trains,
            text,
            rate,
            seconds,
            tokens / seconds,
            memory_gib(self.accelerator.device),
        )
        return {
            "epoch": self.epochs_done,
            "phase": stage.phase,
            "trains": stage.trains,
            **means,
            "lr": rate,
            "seconds": seconds,
            "targets": targets,
            "tokens": tokens,
        }

    def _step(self, batch: SequenceBatch, stage: Stage, scheduler) -> torch.Tensor:
        """One optimizer step; returns the losses of the batch, unweighted."""
        losses = self._losses(batch, stage)
        weighted = ((getattr(stage, name), value) for name, value in losses._asdict().items())
        loss = sum(weight * value for weight, value in weighted if weight)
        self.accelerator.backward(loss)
        if clip := self.config["clip_grad_norm"]:
            self.accelerator.clip_grad_norm_(self.parameters[stage.trains], **clip)
        optimizer = self.optimizers[stage.trains]
        optimizer.step()
        if not optimizer.step_was_skipped:  # as when fp16 gradients overflow
            scheduler.step()
        optimizer.zero_grad()
        return torch.stack([value.detach().float() for value in losses])

    def _losses(self, batch: SequenceBatch, stage: Stage) -> Losses:
        model = self.model
        codes, embedding = model.codes(batch.items), model.item_embedding[batch.distinct]
        with torch.set_grad_enabled(stage.trains == "recommender"):
            output = self.modules["recommender"](codes, batch.target_index)
        tokenized = self.modules["tokenizer"](embedding, output.sequence_latent)
        return model.losses(batch, output, tokenized)

    def _freeze_all_but(self, trains: str) -> None:
        for name, parameters in self.parameters.items():
            learning = name == trains
            self.modules[name].train(learning)
            for parameter in parameters:
                parameter.requires_grad_(learning)
                parameter.grad = None

    # Validation ---------------------------------------------------------------------------------

    def _evaluate(self, loader, title: str) -> dict:
        return evaluate(
            self.model,
            loader,
            (self.train_data or loader)._dataset,
            self.config,
            show_progress=self.show_progress,
            title=title,
        )

    def _keep_best(self, result: dict) -> None:
        self.best_valid_result = dict(result)
        self.best_state = trained_state(self.model)
        if self.saved:
            description = {
                "model": self.config["model"],
                "dataset": self.config["dataset"],
                "epoch": self.epochs_done,
                "codes": self.model.codes.digest(),
                "valid_result": self.best_valid_result,
            }
            save_model(self.best_state, description, self.run_dir.best)


def memory_gib(device: torch.device) -> float:
    """Memory of this process: the most it held on a GPU, or what it holds in use of the CPU's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def decay_groups(module: torch.nn.Module, weight_decay: float) -> list[dict]:
    """AdamW groups: weight decay on matrices, none on norms, biases and code tables."""
    groups: dict[bool, list] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            table = "codebooks" in name or "collision_table" in name
            groups[parameter.ndim >= 2 and not table].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]

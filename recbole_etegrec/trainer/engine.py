"""One optimizer step, on any number of devices and processes.

accelerate owns devices, precision, accumulation and the recommender's wrapper (DDP or FSDP). The
tokenizer is small: every process holds it whole, and its gradients are summed
here, so it needs no wrapper of its own.
"""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, gather_object
from torch import nn
from torch.distributed import ReduceOp
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from recbole_etegrec.captured_step import CapturedStep
from recbole_etegrec.config import Config
from recbole_etegrec.data import SequenceBatch
from recbole_etegrec.data.padding import pad_batch
from recbole_etegrec.errors import TrainingError
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.tokenizer import CodeHealth
from recbole_etegrec.trainer.optimizers import make_optimizer
from recbole_etegrec.trainer.schedule import Stage
from recbole_etegrec.trainer.sharding import keep_whole, settle_types
from recbole_etegrec.trainer.trackers import make_trackers

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 10  # in a row with a NaN or infinity; one more ends the run
ROWS_FROM = 500_000  # items from which on a step moves only the free vectors that it reads
_LOOK_EVERY = 50  # steps on a GPU, which goes on meanwhile, between two looks at what came of them


class StepResult(NamedTuple):
    """What one step gives.

    Attributes:
        losses: of this process's micro-batches; over all processes they sum to those of the step.
        norms: of the gradients of the stage's groups, before clipping, the same on each process.
        skipped: whether a gradient was not finite, so that no parameter moved ``[]``.
    """

    losses: torch.Tensor
    norms: torch.Tensor
    skipped: torch.Tensor


class Engine:
    """Modules, optimizers and processes of one training run.

    Args:
        config: of the run.
        model: its tokenizer and recommender are trained in place.
        run_dir: takes the files of trackers.

    Attributes:
        captures: which steps are recorded as CUDA graphs: those over items alone (False), those
            over sequences (True).
    """

    def __init__(self, config: Config, model: ETEGRecLlama, run_dir: RunDirectory):
        AcceleratorState._reset_state()  # an earlier run of this process may differ
        self.model, self.clip = model, config["clip_grad_norm"] or {}
        # Training needs the memory of recordings, and shards come together anew in each pass.
        model.ranker.records = False
        self.heads_learning_rate = config["heads_learning_rate"]
        self.code_slack = config["code_slack"]
        self.bad_steps = 0
        self.unread: list[tuple[StepResult, Stage]] = []
        self.accelerator = Accelerator(
            mixed_precision="no" if config["precision"] == "fp32" else config["precision"],
            cpu=not config["use_gpu"],
            log_with=make_trackers(config, run_dir),
        )
        self.device = self.accelerator.device
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        backbone = model.recommender.backbone
        if plugin:  # a GPU may not hold it whole: sharding moves it there, each process its share
            model.recommender.backbone = None
        model.to(self.device)
        model.recommender.backbone = backbone
        # The wrapper must know all that will ever train; stages freeze each module as a whole.
        model.tokenizer.requires_grad_(True)
        # One kernel for all parameters, which looks itself whether the gradients are finite; a
        # gradient scaler (fp16) and shards look in their own ways.
        on_gpu = self.device.type == "cuda" and not plugin and self.accelerator.scaler is None
        self.optimizers = {
            "tokenizer": torch.optim.AdamW(
                model.tokenizer.parameters(), weight_decay=0.0, fused=on_gpu or None
            )
        }
        self._settle_rows(config)
        optimizer = make_optimizer(
            config["optimizer"], model.recommender, config["weight_decay"], on_gpu=on_gpu
        )
        if plugin:
            keep_whole(plugin, model.recommender)
        self.recommender, self.optimizers["recommender"] = self.accelerator.prepare(
            model.recommender, optimizer
        )
        if isinstance(self.recommender, FSDPModule):
            for method in ("encode_history", "extend"):
                register_fsdp_forward_method(self.recommender, method)
            settle_types(self.recommender, model.codes)
        self.groups = {name: parameter_groups(getattr(model, name)) for name in self.optimizers}
        self.parameters = {
            name: [p for group in groups.values() for p in group]
            for name, groups in self.groups.items()
        }
        model.tokenizer.requires_grad_(False)
        # Processes that share no cache may have made them with other rounding.
        content = model.item_content
        model.take_items(
            self._from_main(model.item_embedding),
            None if content is None else self._from_main(content),
        )
        self._share(model.tokenizer)
        self._share(model.codes)
        self.max_items = max(config["max_tokens"] // config["code_length"], 1)
        self.by_prefix = config["training_rows"] == "prefixes"
        head = model.recommender.item_head
        sparse = head is not None and head.sparse
        self.captures = _captured_kinds(config, self.accelerator, sparse)
        self.captured = CapturedStep(self._gradients_of, self.device, on=bool(self.captures))

    def _settle_rows(self, config: Config) -> None:
        """Let a step move only those free vectors of a large catalogue that it reads.

        Several processes sum their gradients in full, but move the same rows.
        """
        head, items = self.model.recommender.item_head, self.model.n_items - 1
        if head is None or items < max(ROWS_FROM, self.model.item_sample + 1):
            return
        head.by_rows = config["optimizer"] == "adamw"
        head.sparse = head.by_rows and self.accelerator.num_processes == 1
        head.sparse &= self.accelerator.scaler is None

    def freeze_all_but(self, trains: str | None) -> None:
        """Let one module learn, or none."""
        for name, parameters in self.parameters.items():
            getattr(self.model, name).train(name == trains)
            for parameter in parameters:
                parameter.requires_grad_(name == trains)
                parameter.grad = None

    def norms_of(
        self, name: str, micro_batches: list[SequenceBatch], stage: Stage
    ) -> dict[str, float]:
        """The norms by group of what one weighted objective gives in a step; nothing moves.

        The wrapper, which would wait for gradients of all parameters, takes no part.
        """
        parameters = self.parameters[stage.trains]
        recommender = self.model.recommender
        if stage.trains != "recommender":
            recommender = torch.no_grad()(recommender)
        for batch in micro_batches:
            batch = batch.to(self.device)
            loss = self.model.losses([name], batch, recommender, self._logsumexp())[name]
            loss = stage.weights[name] * loss
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None and parameter.grad is not None:
                    gradient = parameter.grad + gradient
                parameter.grad = parameter.grad if gradient is None else gradient
        self._add_up(parameters)
        order = self.clip.get("norm_type", 2.0)
        norms = {
            group: self._total_norm([values_of(p) for p in of_group if p.grad is not None], order)
            for group, of_group in self.groups[stage.trains].items()
        }
        for parameter in parameters:
            parameter.grad = None
        return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))

    def losses(self, batch: SequenceBatch, stage: Stage) -> dict[str, torch.Tensor]:
        """The losses that a stage weights, as shares of those of the step."""
        recommender = self.recommender
        if stage.trains != "recommender":
            recommender = torch.no_grad()(recommender)
        return self.model.losses(stage.weights, batch, recommender, self._logsumexp())

    def norm_names(self, stage: Stage) -> list[str]:
        """What the norms of a stage's steps are of."""
        return [name for part in stage.parts for name in self.groups[part.trains]]

    def step(self, micro_batches: list[SequenceBatch], stage: Stage) -> StepResult:
        """One step of a stage: one of an optimizer, or of one after the other where both learn.

        Where a part meets a NaN or infinity, nothing moves in it. On a GPU that is noticed by
        :meth:`read_results`, which is called here now and then.

        Raises:
            TrainingError: after more than `MAX_BAD_STEPS` such parts in a row.
        """
        if stage.trains != "both":
            return self._step(micro_batches, stage)
        losses, norms = {}, []
        skipped = torch.zeros((), dtype=torch.bool, device=self.device)
        for part in stage.parts:
            self.freeze_all_but(part.trains)
            result = self._step(micro_batches, part)
            losses |= dict(zip(part.weights, result.losses, strict=True))
            norms.append(result.norms)
            skipped = skipped | result.skipped
            if self.model.ties_codebooks:
                self.model.copy_codebooks(
                    to="recommender" if part.trains == "tokenizer" else "tokenizer"
                )
        return StepResult(
            torch.stack([losses[name] for name in stage.weights]), torch.cat(norms), skipped
        )

    def _step(self, micro_batches: list[SequenceBatch], stage: Stage) -> StepResult:
        of_sequences = micro_batches[0].items.numel() > 0
        alike = len(micro_batches) == 1 and not stage.reads_groups  # groups are trees of any shape
        if of_sequences in self.captures and alike:
            (batch,) = micro_batches
            if of_sequences:
                rows = math.ceil(batch.divisor) if self.by_prefix else None
                batch = pad_batch(batch, self.max_items, self.model.n_items, rows)
            # Stages that compute the same have the same recordings.
            kind = Stage("", stage.trains, stage.weights, clip=stage.clip, fixed=stage.fixed)
            result, gradients = self.captured(batch, kind)
            result = StepResult(*(value.clone() for value in result))
            for parameter, gradient in zip(self.parameters[stage.trains], gradients, strict=True):
                parameter.grad = gradient
        else:
            result = self._gradients(micro_batches, stage)
        self._update(result, stage)
        self.unread.append((result, stage))
        if len(self.unread) >= (_LOOK_EVERY if self._looks_itself(stage) else 1):
            self.read_results()
        return result

    def _update(self, result: StepResult, stage: Stage) -> None:
        """Move parameters by their gradients, unless one of these is not finite."""
        optimizer = self.optimizers[stage.trains]
        if self._looks_itself(stage):
            optimizer = self.bare_optimizer(stage.trains)  # the wrapper takes time of its own
            optimizer.found_inf = result.skipped.float()
            optimizer.step()
        elif not result.skipped or self._scaled(stage):  # the scaler skips it, and mends its scale
            optimizer.step()
        optimizer.zero_grad()

    def _looks_itself(self, stage: Stage) -> bool:
        """Whether the optimizer of a stage leaves out steps that are not finite."""
        return bool(self.bare_optimizer(stage.trains).defaults.get("fused"))

    def _gradients_of(self, batch: SequenceBatch, stage: Stage) -> tuple[StepResult, list]:
        """What :meth:`_gradients` leaves, as outputs: the gradient of each parameter, or None."""
        parameters = self.parameters[stage.trains]
        for parameter in parameters:
            parameter.grad = None
        result = self._gradients([batch], stage)
        return result, [parameter.grad for parameter in parameters]

    def _gradients(self, micro_batches: list[SequenceBatch], stage: Stage) -> StepResult:
        """Losses and clipped gradients of a step."""
        total = torch.zeros(len(stage.weights), device=self.device)
        wrapped = stage.trains == "recommender"
        for number, batch in enumerate(micro_batches, 1):
            batch = batch.to(self.device)
            more = wrapped and number < len(micro_batches)  # gradients are summed with the last
            with self.accelerator.no_sync(self.recommender) if more else nullcontext():
                losses = self.losses(batch, stage)
                loss = sum(weight * losses[name] for name, weight in stage.weights.items())
                if wrapped:
                    # The wrapper averages over processes.
                    self.accelerator.backward(loss * self.accelerator.num_processes)
                else:
                    loss.backward()
            total += torch.stack([losses[name].detach().float() for name in stage.weights])
        if stage.trains == "tokenizer":
            self._add_up(self.parameters["tokenizer"])
        elif isinstance(self.recommender, FSDPModule):
            heads = (p for head in self.model.recommender.heads for p in head.parameters())
            self._add_up(list(heads), 1 / self.accelerator.num_processes)
        for group in stage.fixed:  # optimizers leave what has no gradient
            for parameter in self.groups[stage.trains].get(group, []):
                parameter.grad = None
        return StepResult(total, *self._clip(stage))

    def _clip(self, stage: Stage) -> tuple[torch.Tensor, torch.Tensor]:
        """Clip gradients; returns their norms by group, before that, and whether one is broken.

        Nothing is read back from the device.
        """
        if stage.trains == "recommender":
            self.accelerator.unscale_gradients()  # of fp16
        order, groups = self.clip.get("norm_type", 2.0), self.groups[stage.trains].values()
        gradients = [[values_of(p) for p in group if p.grad is not None] for group in groups]
        norms = torch.stack([self._total_norm(group, order) for group in gradients])
        norm = torch.linalg.vector_norm(norms, order)
        if stage.clip and "max_norm" in self.clip:
            largest, exact = self.clip["max_norm"], norm.double()
            scale = (largest / (exact + 1e-6)).masked_fill(exact <= largest, 1.0).float()
            for group in filter(None, gradients):
                torch._foreach_mul_(group, scale)
        return norms, ~norm.isfinite()

    def _total_norm(self, gradients: list[torch.Tensor], order: float) -> torch.Tensor:
        """The norm of all gradients together, over all shards of sharded ones."""
        if not gradients:
            return torch.zeros((), device=self.device)
        norm = nn.utils.get_total_norm(gradients, order)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def read_results(self) -> None:
        """Look at the steps since the last look, each process at the same ones.

        Raises:
            TrainingError: more than `MAX_BAD_STEPS` in a row were broken.
        """
        unread, self.unread = self.unread, []
        if not unread:
            return
        skipped = torch.stack([result.skipped for result, _ in unread]).tolist()
        for broken, (result, stage) in zip(skipped, unread, strict=True):
            if broken:
                self._report_bad_step(result.losses, result.norms, stage)
            else:
                self.bad_steps = 0

    def _scaled(self, stage: Stage) -> bool:
        """Whether gradients carry fp16's scale; the tokenizer is always fp32."""
        return self.accelerator.scaler is not None and stage.trains == "recommender"

    def _report_bad_step(self, losses: torch.Tensor, norms: torch.Tensor, stage: Stage) -> None:
        losses = self.sum_over_processes(losses)
        settles = self._scaled(stage) and self.accelerator.scaler.get_scale() >= 1
        if settles and losses.isfinite().all():
            return  # fp16 gradients overflow now and then until their scale fits
        self.bad_steps += 1
        names = [*stage.weights, *(f"gradient of {name}" for name in self.groups[stage.trains])]
        broken = ~torch.cat([losses, norms]).isfinite()
        what = ", ".join(name for name, bad in zip(names, broken.tolist(), strict=True) if bad)
        where = f"{stage.phase} ({stage.trains})"
        if self.bad_steps > MAX_BAD_STEPS:
            raise TrainingError(
                f"{where}: {what} not finite in {self.bad_steps} steps in a row: "
                f"start anew with a lower {' or '.join(stage.rate_keys)}, or with precision fp32; "
                "the last checkpoint stays"
            )
        logger.warning("%s: %s not finite, step skipped", where, what or "gradient norm")

    def start_optimizer(
        self, name: str, learning_rate: float, *, heads_rate: bool = True
    ) -> torch.optim.Optimizer:
        """Let the optimizer of a module forget its states and begin with a learning rate.

        Args:
            heads_rate: whether all but the decoder may have the one of ``heads_learning_rate``.
        """
        optimizer = self.optimizers[name]
        optimizer.state.clear()
        for group in optimizer.param_groups:
            rate = self.heads_learning_rate if heads_rate and group.get("heads") else None
            group["lr"] = group["initial_lr"] = rate or learning_rate
        return optimizer

    def bare_optimizer(self, name: str) -> torch.optim.Optimizer:
        """The optimizer of a module without accelerate's wrapper, as a scheduler wants it."""
        return getattr(self.optimizers[name], "optimizer", self.optimizers[name])

    # Processes ----------------------------------------------------------------------------------

    def set_codes(self, slack: float = 0.0) -> CodeHealth:
        """Give every item the codes that the main process finds for it.

        Args:
            slack: see :meth:`ETEGRecLlama.semantic_codes`.

        Raises:
            TrainingError: processes then have different code tables.
        """
        health = self.model.set_codes(self._from_main(self.model.semantic_codes(slack)))
        digests = gather_object([self.model.codes.digest()])
        if len(set(digests)) > 1:
            raise TrainingError(f"code tables differ between processes: {', '.join(digests)}")
        return health

    @torch.no_grad()
    def revive_codes(self, generator: torch.Generator) -> int:
        """Move codes that no item uses to where items are; returns how many there were."""
        tokenizer = self.model.tokenizer
        encoded = tokenizer.latents(self.model.item_embedding[1:])
        revived = tokenizer.quantizer.revive(encoded, generator)
        self._share(tokenizer.quantizer)
        return revived

    @torch.no_grad()
    def _share(self, module: nn.Module) -> None:
        """Give every process the main process's parameters."""
        for parameter in module.parameters():
            parameter.copy_(self._from_main(parameter.detach().clone()))

    def match_scale(self, batch: SequenceBatch) -> None:
        """Scale the projectors to the backbone (``projector_init: matched``), on one batch."""
        batch = batch.to(self.device)
        self.model.recommender.eval()
        recommender = self.model.recommender
        recommender.match_scale(self.model.codes(batch.items), batch.target_index, batch.items)
        for head in recommender.heads:
            self._share(head)

    def sum_over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of what each process has, on all of them."""
        return self.accelerator.reduce(tensor.clone(), "sum")

    def _from_main(self, tensor: torch.Tensor) -> torch.Tensor:
        return broadcast(tensor) if self.accelerator.num_processes > 1 else tensor

    def _add_up(self, parameters: list[nn.Parameter], scale: float = 1.0) -> None:
        """Sum gradients that no wrapper has summed."""
        if self.accelerator.num_processes == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.sum_over_processes(torch.cat([g.flatten() for g in gradients])) * scale
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def _logsumexp(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """``log sum exp`` over processes of a tensor that each has, with the gradient kept."""
        if self.accelerator.num_processes == 1:
            return None

        def over_processes(values: torch.Tensor) -> torch.Tensor:
            peak = values.detach().clone()
            torch.distributed.all_reduce(peak, ReduceOp.MAX)
            return peak + _SumOverProcesses.apply((values - peak).exp()).log()

        return over_processes


class _SumOverProcesses(torch.autograd.Function):
    """The sum of what each process has; so is its gradient."""

    @staticmethod
    def forward(_, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


def values_of(parameter: nn.Parameter) -> torch.Tensor:
    """The numbers of a parameter's gradient, of a sparse one those that it has."""
    if not parameter.grad.is_sparse:
        return parameter.grad
    parameter.grad = parameter.grad.coalesce()
    return parameter.grad.values()


def parameter_groups(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of a tokenizer or recommender by what they are part of."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            part = next((part for part in _PARTS if part in name), "backbone")
            groups.setdefault(_PARTS.get(part, part), []).append(parameter)
    return groups


_PARTS = {  # a part of a parameter's name → what its gradient norm is reported as
    "item_head": "item_head",
    "lora_": "lora",
    "encoder.": "encoder",
    "decoder.": "decoder",
    "codebooks": "codebooks",
    "user_table": "user_table",
    "text.": "text",
    "collision_table": "collision_table",
    "_projector": "projectors",
    "_adapter": "adapters",
}


def _captured_kinds(config: Config, accelerator: Accelerator, sparse: bool) -> tuple[bool, ...]:
    """What of :attr:`Engine.captures` is right for a run.

    Large decoders leave the device no time to wait.
    """
    alone = accelerator.num_processes == 1 and accelerator.scaler is None
    if not (config["cuda_graphs"] and alone and accelerator.device.type == "cuda"):
        return ()
    small = not config["base_model"]
    whole = config["gradient_accumulation_steps"] == 1 and not config["gradient_checkpointing"]
    whole = whole and not sparse  # what is as long as the rows that were read cannot be recorded
    return (False, True) if small and whole else (False,)

"""Whether everything that must learn does, and nothing else moves: a look before a long run.

Two steps of each kind of epoch are taken on one batch, by the trainer's own engine. The second
counts: adapters of LoRA start at 0, and half of them get no gradient before they have left it.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from recbole_etegrec.config import Config
from recbole_etegrec.data import SequenceBatch
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.recommender import autocast
from recbole_etegrec.runs.checks import advice
from recbole_etegrec.storage.digests import tensor_digest
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.pretraining import pretraining_epoch, pretraining_epochs
from recbole_etegrec.trainer.schedule import Stage
from recbole_etegrec.trainer.trainer import seed_of

_SHARP, _FLAT = 2.0, 0.02  # deviations of logits; 2 costs some 2 nats over a uniform guess


@dataclass(frozen=True)
class Part:
    """Some parameters of the model, or one row of each.

    Attributes:
        module: ``tokenizer`` or ``recommender``.
        parameters: of the part.
        row: which index into the parameters' first dimension; None for all.
        learns_by: losses of which at least one must reach it.
    """

    module: str
    parameters: list[nn.Parameter]
    learns_by: tuple[str, ...]
    row: int | None = None

    def tensors(self, get: Callable[[nn.Parameter], torch.Tensor | None]) -> list[torch.Tensor]:
        """What `get` gives for each parameter, where it gives anything."""
        found = [get(parameter) for parameter in self.parameters]
        return [t if self.row is None else t[self.row] for t in found if t is not None]

    def norm(self) -> float | None:
        """The norm of its gradient; None if it has none."""
        gradients = self.tensors(lambda parameter: parameter.grad)
        if not gradients:
            return None
        return math.hypot(*(float(torch.linalg.vector_norm(g.float())) for g in gradients))

    def digest(self) -> str:
        """A hash of its values."""
        return tensor_digest({str(i): t for i, t in enumerate(self.tensors(lambda p: p.data))})


@dataclass
class GradientCheck:
    """What was found.

    Attributes:
        cells: by part and stage, the norm of the gradient or a word.
        losses: by stage and loss.
        problems: what must not be so, a line each.
        advice: what could be better, a line each.
        scale: lines on the first logits.
    """

    stages: list[str]
    cells: dict[str, dict[str, str]] = field(default_factory=dict)
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    scale: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether training can begin."""
        return not self.problems

    def __str__(self) -> str:
        width = max(map(len, self.cells)) + 2
        head = f"{'gradient norms':{width}}" + "".join(f"{name:>14}" for name in self.stages)
        rows = [
            f"{part:{width}}" + "".join(f"{cells[stage]:>14}" for stage in self.stages)
            for part, cells in self.cells.items()
        ]
        losses = [
            f"{loss:{width}}"
            + "".join(
                f"{self.losses[s][loss]:14.4f}" if loss in self.losses[s] else " " * 14
                for s in self.stages
            )
            for loss in Stage.LOSSES
        ]
        verdict = ["OK: all that must learn does, and nothing else moved"] if self.ok else []
        sections = [
            [head, *rows],
            [f"{'losses':{width}}", *losses],
            self.scale,
            [f"PROBLEM: {line}" for line in self.problems]
            + [f"advice: {line}" for line in self.advice]
            + verdict,
        ]
        return "\n\n".join("\n".join(section) for section in sections) + "\n"


def check_gradients(
    config: Config, model: ETEGRecLlama, train_data: SequenceLoader
) -> GradientCheck:
    """Pretrain the tokenizer, then take two steps of each kind of epoch on one batch.

    Args:
        config: of a run on one process.
        model: a new one; it is changed.
        train_data: its first step is used.
    """
    train_data.split(config["gradient_accumulation_steps"])
    batches = next(iter(train_data))
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(config, model, RunDirectory(folder))
        _pretrain(config, model, engine)
        if config["projector_init"] == "matched":
            engine.match_scale(train_data.first_step())
        stages = _stages(config, model)
        report = GradientCheck([stage.phase for stage in stages])
        report.advice.extend(advice(config))
        _look_at_scale(config, model, batches[0].to(engine.device), report)
        parts = model_parts(model)
        report.cells = {name: {} for name in parts}
        for stage in stages:
            _check_stage(config, engine, parts, batches, stage, report)
    if model.frozen_digest is not None:
        same = model.digest_frozen() == model.frozen_digest
        report.cells["decoder, frozen"] = dict.fromkeys(report.stages, "-" if same else "MOVED")
        if not same:
            report.problems.append("decoder, frozen: its weights have changed")
    return report


def _stages(config: Config, model: ETEGRecLlama) -> list[Stage]:
    """One of each kind of epoch, its phase saying which."""
    sia, psa = config["sia_weight"], config["psa_weight"]
    pretraining = [Stage("pretraining", "tokenizer", quantization=1.0)]
    alternation = [
        Stage("tokenizer", "tokenizer", 0.0, sia, psa, 1.0),
        Stage("recommender", "recommender", 1.0, sia, psa),
    ]
    return [
        *(pretraining if pretraining_epochs(config, model) else []),
        *(alternation if config["epochs"] else []),
        Stage("final", "recommender", 1.0),
    ]


def model_parts(model: ETEGRecLlama) -> dict[str, Part]:
    """What learns of a model, by name."""
    tokenizer, recommender = model.tokenizer, model.recommender
    embedding = recommender.code_embedding
    parts = {
        "encoder": Part("tokenizer", list(tokenizer.encoder.parameters()), ("quantization",)),
        "decoder": Part("tokenizer", list(tokenizer.decoder.parameters()), ("quantization",)),
    }
    for level in range(len(embedding.codebooks)):
        books = [tokenizer.quantizer.codebooks]
        parts[f"codebook {level}"] = Part("tokenizer", books, ("quantization",), level)
    for level in range(len(embedding.codebooks)):
        name = f"codebook {level}, recommender's"
        parts[name] = Part("recommender", [embedding.codebooks], ("recommendation",), level)
    for name, module, loss in (
        ("input projector", embedding.scid_projector, "recommendation"),
        ("output projector", embedding.output_projector, "recommendation"),
        ("SIA adapter", recommender.enc_adapter, "sia"),
        ("PSA adapter", recommender.dec_adapter, "psa"),
    ):
        parts[name] = Part("recommender", list(module.parameters()), (loss,))
    table = [embedding.collision_table]
    parts["collision table"] = Part("recommender", table, ("recommendation",))
    for name, module in recommender.sequence_parts.items():
        learning = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if any("lora_" in n for n in learning):
            name = "decoder, LoRA"
        if learning:
            parts[name] = Part("recommender", list(learning.values()), ("recommendation",))
    fixed = embedding.codebooks.requires_grad is False
    return {
        name: Part(part.module, part.parameters, (), part.row)
        if fixed and name.endswith("recommender's")
        else part
        for name, part in parts.items()
        if part.parameters
    }


def _pretrain(config: Config, model: ETEGRecLlama, engine: Engine) -> None:
    optimizer = engine.optimizers["tokenizer"]
    _set_rate(optimizer, config["tokenizer_learning_rate"])
    model.tokenizer.requires_grad_(True).train()
    epochs = pretraining_epochs(config, model)
    for epoch in range(epochs):
        pretraining_epoch(
            model,
            optimizer,
            batch_size=config["tokenizer_batch_size"],
            seed=seed_of(config["seed"], epoch),
            revive=epoch < epochs - 1,
        )
    model.tokenizer.requires_grad_(False).eval()
    model.rebuild_codes()


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["lr"] = rate


def _check_stage(
    config: Config,
    engine: Engine,
    parts: dict[str, Part],
    batches: list[SequenceBatch],
    stage: Stage,
    report: GradientCheck,
) -> None:
    rates = {
        "tokenizer": config["alternation_tokenizer_learning_rate"],
        "recommender": config["learning_rate"],
    }
    _set_rate(engine.optimizers[stage.trains], rates[stage.trains])
    engine.freeze_all_but(stage.trains)
    before = {name: part.digest() for name, part in parts.items()}
    engine.step(batches, stage)
    batch = batches[0].to(engine.device)
    losses = engine.losses(batch, stage)
    sum(weight * losses[name] for name, weight in stage.weights.items()).backward()
    report.losses[stage.phase] = {n: float(v.detach()) * batch.pieces for n, v in losses.items()}
    norms = {name: part.norm() for name, part in parts.items()}
    for optimizer in engine.optimizers.values():
        optimizer.zero_grad()
    engine.step(batches, stage)
    for name, part in parts.items():
        moved = part.digest() != before[name]
        must = part.module == stage.trains and not stage.weights.keys().isdisjoint(part.learns_by)
        may = part.module == stage.trains and bool(part.learns_by)
        cell, problem = _judge(norms[name], moved, must, may)
        report.cells[name][stage.phase] = cell
        if problem:
            report.problems.append(f"{name}: {problem} in the {stage.phase} stage")


def _judge(norm: float | None, moved: bool, must: bool, may: bool) -> tuple[str, str]:
    """What to show of a part, and what is wrong with it, if anything is."""
    if must and norm is None:
        return "MISSING", "no gradient"
    if must and not math.isfinite(norm):
        return f"{norm}", "a gradient that is not finite"
    if must and norm == 0:
        return "ZERO", "a gradient of 0"
    if must and not moved:
        return f"{norm:.1e} STUCK", "a gradient but no change"
    if not may and moved:
        return "MOVED", "has changed though it is fixed"
    return (f"{norm:.1e}" if norm else "-"), ""


@torch.no_grad()
def _look_at_scale(
    config: Config, model: ETEGRecLlama, batch: SequenceBatch, report: GradientCheck
) -> None:
    """How far the first logits are from a uniform guess, and from a blind one."""
    recommender = model.recommender.eval()
    codes, targets = model.codes(batch.items), model.codes(batch.targets)
    with autocast(config["precision"], config["device"].type):
        tokens = recommender.code_embedding.embed(codes[codes.any(dim=2)])
        logits = recommender(codes, batch.target_index).logits  # [n, L, C]
    own = recommender.backbone.token_rms
    enters = float(tokens.square().mean().sqrt())
    report.scale = [
        f"codes enter the decoder at {enters:.3g} (root mean square; its own tokens: {own:.3g})",
        "first logits           deviation    loss (nats)    uniform guess: ln C = "
        f"{math.log(config['code_num']):.2f}",
    ]
    for level, (spread, loss) in enumerate(_levels(logits, targets)):
        report.scale.append(f"  code {level}              {spread:10.3f}     {loss:10.2f}")
        if spread > _SHARP:
            report.advice.append(
                f"code {level} starts with a softmax that is too sharp (deviation {spread:.1f}): "
                "set projector_init to matched, or lower init_std"
            )
        elif spread < _FLAT:
            report.advice.append(
                f"code {level} starts with the same logit for all codes (deviation {spread:.3f}), "
                "and learns slowly: set projector_init to matched, or raise init_std"
            )


def _levels(logits: torch.Tensor, targets: torch.Tensor) -> Iterator[tuple[float, float]]:
    """Deviation over codes and loss of each level."""
    for level in range(logits.shape[1]):
        spread = logits[:, level].std(dim=-1).square().mean().sqrt()
        loss = nn.functional.cross_entropy(logits[:, level], targets[:, level])
        yield float(spread), float(loss)

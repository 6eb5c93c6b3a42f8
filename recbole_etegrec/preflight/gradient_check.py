"""Whether everything that must learn does, and nothing else moves: a look before a long run.

Two steps of each kind of epoch are taken on one batch, by the trainer's own engine. The second
counts: adapters of LoRA start at 0, and half of them get no gradient before they have left it.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from recbole_etegrec.config import Config
from recbole_etegrec.data import SequenceBatch
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.losses import OBJECTIVES
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.recommender import ItemHead, autocast
from recbole_etegrec.runs.checks import advice
from recbole_etegrec.storage.digests import tensor_digest
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer import ETEGRecTrainer
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.schedule import Phase, Stage, phases_of

_SHARP, _FLAT = 2.0, 0.02  # deviations of logits; 2 costs some 2 nats over a uniform guess


@dataclass(frozen=True)
class Part:
    """Some parameters of the model, or one row of each.

    Attributes:
        module: ``tokenizer`` or ``recommender``.
        parameters: of the part.
        row: which index into the parameters' first dimension; None for all.
        learns_by: objectives of which at least one must reach it.
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
            for loss in OBJECTIVES
            if any(loss in found for found in self.losses.values())
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
    phases, parts = phases_of(config), model_parts(model)  # before anything is fixed
    with tempfile.TemporaryDirectory() as folder:
        trainer = ETEGRecTrainer(config, model, RunDirectory(folder))
        trainer.use_data(train_data)
        for phase in phases:
            if phase.loader == "items":
                trainer.run_phase(phase)
        trainer.settle_codes()
        trainer.engine.captures = ()  # gradients are looked at between steps, too
        batches = {
            name: [
                # Losses are shown as means over the step itself.
                batch._replace(targets_a_step=None)
                for batch in next(loader.iterate())
            ]
            for name, loader in trainer.loaders.items()
            if name != "items"
        }
        kinds = kinds_of_epochs(phases)
        report = GradientCheck(list(kinds))
        report.advice.extend(advice(config))
        first = batches["sequences"][0].to(trainer.engine.device)
        _look_at_scale(config, model, first, report)
        report.cells = {name: {} for name in parts}
        for name, kind in kinds.items():
            given = batches.get(kind.loader, batches["sequences"])
            if kind.stage.phase == "preference" and trainer.preferences.maker is None:
                trainer.begin_guarded()
            if kind.stage.reads_groups:
                given = trainer.preferences.with_groups(given, 0.0, config["seed"])
            _check_epoch(trainer.engine, parts, given, name, kind, report)
    if model.frozen_digest is not None:
        same = model.digest_frozen() == model.frozen_digest
        report.cells["decoder, frozen"] = dict.fromkeys(report.stages, "-" if same else "MOVED")
        if not same:
            report.problems.append("decoder, frozen: its weights have changed")
    return report


class Kind(NamedTuple):
    """A kind of epoch: a stage that trains one module, its rate, and what it goes over."""

    stage: Stage
    learning_rate: float
    loader: str


def kinds_of_epochs(phases: list[Phase]) -> dict[str, Kind]:
    """One of each kind of epoch of a run, by a name: its phase, or what it trains in a phase.

    Of the epochs of a kind it is the last, in which all objectives count.
    """
    kinds: dict[str, Kind] = {}
    for phase in phases:
        parts = {part.trains: part for stage in phase.stages for part in stage.parts}
        for module in sorted(parts, reverse=True):  # the tokenizer goes first
            name = phase.name if len(parts) == 1 else module
            if name in kinds:
                name = f"{phase.name} {module}"
            kinds[name] = Kind(parts[module], phase.learning_rates[module], phase.loader)
    return kinds


def model_parts(model: ETEGRecLlama) -> dict[str, Part]:
    """What learns of a model, by name."""
    tokenizer, recommender = model.tokenizer, model.recommender
    embedding = recommender.code_embedding
    levels = range(len(embedding.codebooks))

    def part(module: str, kind: str, parameters: Iterable[nn.Parameter], row: int | None = None):
        learns_by = tuple(name for name, one in OBJECTIVES.items() if kind in one.reaches)
        return Part(module, list(parameters), learns_by, row)

    parts = {
        name: part("tokenizer", name, module.parameters())
        for name, module in (("encoder", tokenizer.encoder), ("decoder", tokenizer.decoder))
    }
    for level in levels:
        books = [tokenizer.quantizer.codebooks]
        parts[f"codebook {level}"] = part("tokenizer", "codebooks", books, level)
    for level in levels:
        # Where the tokenizer alone moves codebooks, no objective reaches the recommender's.
        kind = "codebooks, recommender's" if embedding.codebooks.requires_grad else "fixed"
        name = f"codebook {level}, recommender's"
        parts[name] = part("recommender", kind, [embedding.codebooks], level)
    for name, module in (
        ("input projector", embedding.scid_projector),
        ("output projector", embedding.output_projector),
        ("SIA adapter", recommender.enc_adapter),
        ("PSA adapter", recommender.dec_adapter),
    ):
        parts[name] = part("recommender", name, module.parameters())
    for name, parameters in _item_head(recommender.item_head).items():
        parts[name] = part("recommender", name, parameters)
    table = "collision table"
    parts[table] = part("recommender", table, [embedding.collision_table])
    if embedding.user_table is not None:
        parts["user codes"] = part("recommender", "user codes", [embedding.user_table])
    for name, module in recommender.sequence_parts.items():
        learning = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if any("lora_" in n for n in learning):
            name = "decoder, LoRA"
        parts[name] = part("recommender", "backbone", learning.values())
    if recommender.text is not None:
        learning = [p for p in recommender.text.parameters() if p.requires_grad]
        parts["token table and its head"] = part("recommender", "token table", learning)
    return {name: part for name, part in parts.items() if part.parameters}


def _item_head(head: ItemHead | None) -> dict[str, list[nn.Parameter]]:
    """The parameters of an item head by what they are for."""
    if head is None:
        return {}
    parts = {"item query": head.query, "item projector": head.project, "item entry": head.enter}
    parts |= {"item content": head.describe, "item decoder": head.decoder}
    found = {name: list(module.parameters()) for name, module in parts.items() if module}
    repeats = {} if head.repeat is None else {"item repeats": [head.repeat]}
    return {**found, "free vectors": [head.free], **repeats}


def _check_epoch(
    engine: Engine,
    parts: dict[str, Part],
    batches: list[SequenceBatch],
    name: str,
    kind: Kind,
    report: GradientCheck,
) -> None:
    stage = kind.stage
    engine.start_optimizer(stage.trains, kind.learning_rate)
    engine.freeze_all_but(stage.trains)
    before = {part: its.digest() for part, its in parts.items()}
    engine.step(batches, stage)
    batch = batches[0].to(engine.device)
    losses = engine.losses(batch, stage)
    sum(weight * losses[name] for name, weight in stage.weights.items()).backward()
    shares = batch.micro_batches
    report.losses[name] = {loss: float(v.detach()) * shares for loss, v in losses.items()}
    norms = {part: its.norm() for part, its in parts.items()}
    fixed = {id(p) for group in stage.fixed for p in engine.groups[stage.trains].get(group, ())}
    for optimizer in engine.optimizers.values():
        optimizer.zero_grad()
    engine.step(batches, stage)
    for part, its in parts.items():
        moved = its.digest() != before[part]
        learns = its.module == stage.trains and fixed.isdisjoint(map(id, its.parameters))
        must = learns and not stage.weights.keys().isdisjoint(its.learns_by)
        may = learns and bool(its.learns_by)
        cell, problem = _judge(norms[part], moved, must, may)
        report.cells[part][name] = cell
        if problem:
            report.problems.append(f"{part}: {problem} in the {name} stage")


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
        logits = model.read(batch).logits  # [n, L, C]
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

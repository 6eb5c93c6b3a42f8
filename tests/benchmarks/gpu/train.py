"""How fast the decoder trains, beside its memory plan, the first design, and other settings."""

from collections.abc import Callable
from itertools import islice

from accelerate import PartialState

from recbole_etegrec.config import Config
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.losses import objective_weights
from recbole_etegrec.preflight.memory_plan import GIB
from recbole_etegrec.recommender.backbone import checkpoint_activations
from recbole_etegrec.recommender.fused_kernels import FUSED_KERNELS, fuse
from recbole_etegrec.trainer.schedule import Stage
from tests.benchmarks.first_design import prefix_loader
from tests.benchmarks.flops import useful_flops
from tests.benchmarks.gpu.bench import LARGE_CARD, SMALL_CARD, Bench, in_short
from tests.benchmarks.gpu.measure import (
    device_gib,
    limit_memory,
    now,
    peak_gib,
    reset_peak,
)

FUSED = ((8192, True), (16384, True), (4096, False), (8192, False), (16384, False))
ROWS, PIECES = 16, 8  # of a step of the first design: 2 prefix rows, 8 times accumulated


def train(bench: Bench) -> None:
    """The overlays, what fits on a card of 80 GB, and the first design's steps."""
    bench.engine.freeze_all_but("recommender")  # loads the decoder, before memory is limited
    ranks = PartialState().num_processes
    budget = bench.base["max_tokens"] * ranks
    small = bench.config(SMALL_CARD, max_tokens=budget)
    bench.measure("train", "32 GB overlay", lambda: train_as(bench, small, bench.steps(8)))
    if ranks == 1:
        bench.measure("train", "first design", lambda: first_design(bench, bench.steps(3)))
    kept = {"gradient_checkpointing": False}
    middle = bench.config(SMALL_CARD, max_tokens=8192 * ranks, memory_gib=None, **kept)
    bench.measure("train", "8192 tokens, kept", lambda: train_as(bench, middle, bench.steps(6)))
    large = bench.config(LARGE_CARD)
    large = bench.config(LARGE_CARD, max_tokens=large["max_tokens"] * ranks)
    if device_gib(bench.device) < large["memory_gib"]:
        bench.record("train", "141 GB overlay", {"skipped": "the card is smaller"})
    else:
        bench.measure("train", "141 GB overlay", lambda: train_as(bench, large, bench.steps(4)))


def train_as(bench: Bench, config: Config, steps: int) -> dict:
    """Planned and measured memory, and the speed of steps under a configuration."""
    loader = bench.loaders(config)[0]
    plan = bench.plan_of(config)
    loader.split(1, PartialState().num_processes, PartialState().process_index)
    limit_memory(bench.device, config["memory_gib"])
    figures = time_steps(bench, config["gradient_checkpointing"], loader, steps)
    return {**figures, "plan_gib": plan.training.total / GIB}


def texts(bench: Bench) -> None:
    """Steps that have rows of tasks of texts, kept and checkpointed, beside their memory plan."""
    tokens = {"max_tokens": 256, "task_tokens": 256} if bench.rehearse else {}
    for checkpointing in (False, True):
        how = "checkpointed" if checkpointing else "kept"
        config = bench.config(
            SMALL_CARD, memory_gib=None, gradient_checkpointing=checkpointing, **tokens
        )
        name = f"{config['max_tokens']} + {config['task_tokens']} tokens, {how}"
        bench.measure("texts", name, lambda c=config: train_as(bench, c, bench.steps(6)))


def first_design(bench: Bench, steps: int) -> dict:
    """Prefix rows in random batches of 16, two at a time, checkpointed as the small card needs."""
    dataset = bench.loaders(bench.base)[0]._dataset
    loader = prefix_loader(dataset, bench.base["code_length"], 0, bucketed=False, rows=ROWS)
    loader.split(PIECES)
    loader.steps = loader.steps[: steps + 1]
    accelerator = bench.engine.accelerator
    accelerator.gradient_accumulation_steps, accelerator.step = PIECES, 0
    try:
        figures = time_steps(bench, True, loader, steps)
    finally:
        accelerator.gradient_accumulation_steps, accelerator.step = 1, 0
    ours = bench.find("train", "32 GB overlay", "targets_per_second")
    return {**figures, "times_slower": ours and ours / figures["targets_per_second"]}


def time_steps(bench: Bench, checkpointing: bool, loader: SequenceLoader, steps: int) -> dict:
    """Take the largest step for its memory, then a few for their time."""
    engine, device = bench.engine, bench.device
    recommender = engine.model.recommender
    checkpoint_activations(recommender.backbone, checkpointing)
    engine.freeze_all_but("recommender")
    stage = Stage("recommender", "recommender", objective_weights(bench.base, "recommender"))
    largest = next(loader.iterate(int(max(range(len(loader)), key=_tokens_of(loader)))))
    batches = list(islice(iter(loader), steps))
    engine.step(largest, stage)
    reset_peak(device)
    result = engine.step(largest, stage)
    peak = peak_gib(device)
    engine.step(batches[0], stage)
    started = now(device)
    for micro_batches in batches:
        engine.step(micro_batches, stage)
    seconds = now(device) - started
    items = sum(micro_batches[0].step_items for micro_batches in batches)
    rows_of_tasks = [first.tasks.tokens for first, *_ in batches if first.tasks]
    rows = [batch for micro_batches in batches for batch in micro_batches]
    rate = useful_flops(recommender, rows) / seconds
    padded = sum(batch.items.numel() for batch in rows) * PartialState().num_processes
    return {
        "tokens_per_second": (items * bench.base["code_length"] + sum(rows_of_tasks)) / seconds,
        "targets_per_second": sum(first.step_targets for first, *_ in batches) / seconds,
        "step_seconds": seconds / len(batches),
        "model_flop_utilisation": rate / bench.matmul_rate,
        "useful_tflops": rate / 1e12,
        "real_tokens": items / padded,
        "peak_gib": peak,
        "finite": not result.skipped,
    }


def _tokens_of(loader: SequenceLoader) -> Callable[[int], int]:
    tokens = (loader.windows.end - loader.windows.start) * loader.code_length - 1
    return lambda step: tokens[loader.steps[step]].max() * len(loader.steps[step])


def sweep(bench: Bench) -> None:
    """Budgets of tokens with activations kept and checkpointed, then ways of attention."""
    budgets = (256, 512) if bench.rehearse else (4096, 8192, 12288, 16384, 32768)
    for tokens in budgets:
        loader = bench.loaders(bench.config(SMALL_CARD, max_tokens=tokens))[0]
        for checkpointing in (False, True):
            how = "checkpointed" if checkpointing else "kept"
            bench.measure(
                "sweep",
                f"{tokens} tokens, {how}",
                lambda c=checkpointing, d=loader: time_steps(bench, c, d, bench.steps(3)),
            )
    loader = bench.loaders(bench.config(SMALL_CARD, max_tokens=budgets[1]))[0]
    decoder = bench.model.recommender.backbone.get_base_model()
    for attention in ("eager", "flash_attention_2", "flash_attention_3"):

        def work(attention=attention) -> dict:
            decoder.set_attn_implementation(attention)
            return time_steps(bench, False, loader, bench.steps(3))

        bench.measure("sweep", f"{budgets[1]} tokens, kept, {attention}", work)
        decoder.set_attn_implementation("sdpa")


def fused(bench: Bench) -> None:
    """Layers as they are, and by fewer kernels, which they stay: this section comes last but one.

    Kept activations are to reach half of the device's matmul rate by real tokens, and what is
    computed anew within 31 GiB three tenths of it.
    """
    bench.engine.freeze_all_but("recommender")
    for name in (None, *reversed(FUSED_KERNELS)):  # liger takes the place of all that compile does
        if name and bench.device.type == "cuda":
            try:
                fuse(bench.model.recommender.backbone, name)
            except ImportError as error:
                bench.record("fused", name, {"error": in_short(error)})
                continue
        for tokens, kept in FUSED:
            changes = {"gradient_checkpointing": not kept, **({"memory_gib": None} if kept else {})}
            changes["max_tokens"] = 256 if bench.rehearse else tokens
            config = bench.config(SMALL_CARD, **changes)
            how = "kept" if kept else "anew, 31 GiB"
            bench.measure(
                "fused",
                f"{tokens} tokens, {how}, {name or 'as they are'}",
                lambda c=config, k=kept: _with_target(train_as(bench, c, bench.steps(4)), k),
            )


def _with_target(figures: dict, kept: bool) -> dict:
    target = 0.5 if kept else 0.3
    return {**figures, "target": target, "passed": figures["model_flop_utilisation"] >= target}


def compiled(bench: Bench) -> None:
    """Layers compiled by torch, activations kept; they stay so, this section comes last."""
    tokens = 256 if bench.rehearse else 8192
    loader = bench.loaders(bench.config(SMALL_CARD, max_tokens=tokens))[0]
    for layer in bench.model.recommender.backbone.get_base_model().layers:
        layer.compile(dynamic=True)
    bench.measure(
        "compiled",
        f"{tokens} tokens, kept",
        lambda: time_steps(bench, False, loader, bench.steps(4)),
    )

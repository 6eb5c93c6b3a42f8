"""A 7B decoder on one GPU: how fast it trains and ranks, beside what the device can do.

Neither speed nor memory depends on the values of weights, so random ones of the shape of
Llama-2-7B are written to a directory and loaded from there, as downloaded ones would be; item
embeddings are random too. The sequences are the data set's.

    python -m tests.benchmarks.gpu --data_path=DIR [--sections=train,decode] [--out=FILE.json]
    accelerate launch --num_processes=2 -m tests.benchmarks.gpu --data_path=DIR --sections=train

Sections, in this order: checks (fast paths against slow ones), train, decode, plan (what was
predicted of the two before it against what was measured), and if named sweep (budgets of tokens,
checkpointing, attention) and compile. A row is printed, and the file written, as soon as it is
measured; what fails is a row with its error. `--shape=FILE.json` takes the shape of another decoder
(a configuration of transformers), `--rehearse` a tiny one and short measurements, on any device.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import AutoConfig, AutoModel

from recbole_etegrec.cli import parse_arguments
from recbole_etegrec.compat import versions
from recbole_etegrec.config import Config, properties_dir
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.memory_plan import GIB, MemoryPlan
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.model.build import autocast
from recbole_etegrec.quick_start import _load_data
from recbole_etegrec.recommender.backbone import cached_tensors, checkpoint_activations
from recbole_etegrec.run_directory import RunDirectory
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.schedule import Stage
from tests.benchmarks.first_design import PIECES, draw_random_rows, rerunning_beams
from tests.benchmarks.measure import (
    clear,
    copy_rate,
    device_gib,
    limit_memory,
    linear_parameters,
    matmul_rates,
    now,
    peak_gib,
    useful_flops,
)

SMALL_CARD, LARGE_CARD = "llama2_7b_rtx5090", "llama2_7b_h200"
EMBEDDING_WIDTH = 256
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
}
REHEARSAL = {"lora_r": 4, "code_num": 128, "e_dim": 16, "tokenizer_hidden_sizes": [16]}


class Bench:
    """One loaded decoder, the rows measured with it, and where they are written.

    Args:
        options: see `main`.
        values: of the configurations.
        folder: with the weights.
    """

    def __init__(self, options: argparse.Namespace, values: dict, folder: str):
        self.rehearse, self.out, self.rows = options.rehearse, options.out, []
        self.values, self.folder = {**values, "base_model": folder}, folder
        self.base = self.config(SMALL_CARD)
        self.device, self.main = self.base["device"], PartialState().is_main_process
        sizes = (256, 512) if self.rehearse else (4096, 8192, 12288, 16384)
        rates = matmul_rates(self.device, sizes)
        self.matmul_rate = max(rates.values())
        self.copy_rate = copy_rate(self.device, 2**20 if self.rehearse else 4 * GIB)
        on_gpu = self.device.type == "cuda"
        self.facts = {
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "processes": PartialState().num_processes,
            "versions": versions(),
            "matmul_tflops": {size: rate / 1e12 for size, rate in rates.items()},
            "copy_gb_per_second": self.copy_rate / 1e9,
        }
        self.say(json.dumps(self.facts))

    def config(self, overlay: str, **changes) -> Config:
        return Config("ETEGRecLlama", None, [overlay], {**self.values, **changes})

    def loaders(self, config: Config) -> tuple:
        return _load_data(config)[1]

    @cached_property
    def model(self) -> ETEGRecLlama:
        dataset = self.loaders(self.base)[0]._dataset
        embedding = torch.randn(
            dataset.item_num, EMBEDDING_WIDTH, generator=torch.Generator().manual_seed(0)
        )
        return ETEGRecLlama(self.base, dataset, embedding).to(self.device)

    @cached_property
    def engine(self) -> Engine:
        started = time.perf_counter()
        engine = Engine(self.base, self.model, RunDirectory(self.folder))
        engine.match_scale(self.loaders(self.base)[0].first_step())
        engine.freeze_all_but("recommender")
        for group in engine.bare_optimizer("recommender").param_groups:
            group["lr"] = self.base["learning_rate"]
        self.record("load", "decoder", {"wall_seconds": time.perf_counter() - started})
        return engine

    def steps(self, number: int) -> int:
        return 1 if self.rehearse else number

    def say(self, line: str) -> None:
        if self.main:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def record(self, section: str, name: str, figures: dict) -> None:
        """Print a row and write all there are."""
        self.rows.append({"section": section, "name": name, **figures})
        shown = (f"{key} {_short(value)}" for key, value in figures.items() if value is not None)
        self.say(f"{section:8}{name:48}" + "  ".join(shown))
        if self.out and self.main:
            fresh = self.out.with_suffix(".tmp")
            fresh.write_text(json.dumps({**self.facts, "rows": self.rows}, indent=1) + "\n")
            fresh.replace(self.out)

    def measure(self, section: str, name: str, work: Callable[[], dict]) -> None:
        """A row of what some work finds, of its seconds, or of the error that ends it."""
        clear(self.device)
        started = time.perf_counter()
        try:
            figures = work()
        except Exception as error:  # other rows are measured all the same
            figures = {"error": _in_short(error)}
            if "engine" in vars(self):
                self.engine.bare_optimizer("recommender").zero_grad()
        finally:
            limit_memory(self.device, None)
        self.record(section, name, {**figures, "wall_seconds": time.perf_counter() - started})

    def find(self, section: str, name: str, key: str) -> float | None:
        rows = (row for row in self.rows if (row["section"], row["name"]) == (section, name))
        return next((row.get(key) for row in rows), None)


# Training -------------------------------------------------------------------------------------


def train(bench: Bench) -> None:
    """The overlays, what fits on a card of 80 GB, and the first design's steps."""
    bench.engine  # noqa: B018  loads the decoder, before memory is limited
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
    plan = MemoryPlan(config, loader, EMBEDDING_WIDTH)
    loader.split(1, PartialState().num_processes, PartialState().process_index)
    limit_memory(bench.device, config["memory_gib"])
    figures = time_steps(bench, config["gradient_checkpointing"], loader, steps)
    return {**figures, "plan_gib": plan.training.total / GIB}


def first_design(bench: Bench, steps: int) -> dict:
    """Prefix rows in random batches of 16, two at a time, checkpointed as the small card needs."""
    loader = bench.loaders(bench.config(SMALL_CARD, training_rows="prefixes"))[0]
    draw_random_rows(loader, steps + 1)
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
    stage = Stage("recommender", "recommender", 1.0, *(bench.base[k] for k in ALIGNMENT))
    largest = next(loader.iterate(int(max(range(len(loader)), key=_tokens_of(loader)))))
    batches = list(islice(iter(loader), steps))
    engine.step(largest, stage)
    clear(device)
    result = engine.step(largest, stage)
    peak = peak_gib(device)
    engine.step(batches[0], stage)
    started = now(device)
    for pieces in batches:
        engine.step(pieces, stage)
    seconds = now(device) - started
    items = sum(pieces[0].step_items for pieces in batches)
    rows = [batch for pieces in batches for batch in pieces]
    rate = useful_flops(recommender, rows) / seconds
    padded = sum(batch.items.numel() for batch in rows) * PartialState().num_processes
    return {
        "tokens_per_second": items * bench.base["code_length"] / seconds,
        "targets_per_second": sum(pieces[0].step_targets for pieces in batches) / seconds,
        "step_seconds": seconds / len(batches),
        "model_flop_utilisation": rate / bench.matmul_rate,
        "useful_tflops": rate / 1e12,
        "real_tokens": items / padded,
        "peak_gib": peak,
        "finite": not result.skipped,
    }


ALIGNMENT = ("sia_weight", "psa_weight")


def _tokens_of(loader: SequenceLoader) -> Callable[[int], int]:
    lengths = loader.windows.end - loader.windows.start
    return lambda step: lengths[loader.steps[step]].max() * len(loader.steps[step])


# Ranking --------------------------------------------------------------------------------------


def decode(bench: Bench) -> None:
    """Users a second with 20 beams, for the longest histories and for a mix as in the data."""
    bench.engine  # noqa: B018  its optimizers hold memory while a run evaluates, and the plan says so
    small, large = (bench.config(overlay) for overlay in (SMALL_CARD, LARGE_CARD))
    for kind in ("longest", "mixed"):
        for users in (1, 4):
            name = f"{users} users, {kind}"
            bench.measure("decode", name, lambda k=kind, n=users: rank(bench, k, n))
        for config in (small, large):
            name = f"{config['eval_batch_size']} users, {kind}"
            bench.measure("decode", name, lambda c=config, k=kind: rank_as(bench, c, k))
        bench.measure("decode", f"4 users run again, {kind}", lambda k=kind: rerun(bench, k, 4))


def rank_as(bench: Bench, config: Config, kind: str) -> dict:
    """An evaluation batch of a configuration; of the longest histories also what is planned."""
    figures = rank(bench, kind, config["eval_batch_size"], config["memory_gib"])
    if kind == "longest":
        plan = MemoryPlan(config, bench.loaders(config)[0], EMBEDDING_WIDTH)
        figures["plan_gib"] = plan.evaluation.total / GIB
    return figures


def _histories(bench: Bench, kind: str, users: int):
    """Rows of the test users with the longest histories, or of users evenly through the file."""
    dataset = bench.loaders(bench.base)[2]._dataset
    length = dataset.inter_feat[dataset.item_list_length_field]
    if kind == "longest":
        chosen = length.argsort(descending=True)[:users]
    else:
        chosen = torch.linspace(0, len(length) - 1, users).long()
    return dataset[chosen].to(bench.device)


@torch.no_grad()
def rank(bench: Bench, kind: str, users: int, memory_gib: float | None = None) -> dict:
    """Rank with 20 beams, and compare each step with what the device can do at best.

    A step reads all weights and all of the cache once, and multiplies each of the former with
    each new token: it cannot take less than the one at the measured rate of copies, nor than the
    other at the measured rate of products.
    """
    model, device = bench.model.eval(), bench.device
    rows, beams = _histories(bench, kind, users), model.num_beams
    limit_memory(device, memory_gib)
    frozen, learning = linear_parameters(model.recommender.backbone)
    weights = sum(p.numel() * p.element_size() for p in model.recommender.backbone.parameters())
    with autocast(bench.base):
        model.full_sort_predict(rows)
        clear(device)
        started = now(device)
        model.full_sort_predict(rows)
        seconds, peak = now(device) - started, peak_gib(device)
        started = now(device)
        history = model._encode(rows)
        encode_seconds = now(device) - started
        reads, times = [], []
        with _extensions_timed(model.recommender, device, reads, times):
            model._beams(rows, beams, None)
    by_reading = sum(weights + cache for cache in reads) / bench.copy_rate
    flops = 2 * (frozen + learning) * users * beams * len(reads)
    by_computing = flops / bench.matmul_rate
    return {
        "users_per_second": users / seconds,
        "encode_seconds": encode_seconds,
        "step_seconds": sum(times) / len(times),
        "step_seconds_to_read": by_reading / len(reads),
        "step_seconds_to_compute": by_computing / len(reads),
        "of_the_limit": max(by_reading, by_computing) / sum(times),
        "tokens_a_history": history.visible.shape[1],
        "real_tokens": float(history.visible.float().mean()),
        "peak_gib": peak,
    }


@contextmanager
def _extensions_timed(recommender, device, reads: list, times: list) -> Iterator[None]:
    """Note the seconds of each step of a beam search, and the bytes of cache it reads."""
    extend = recommender.extend

    def timed(history, *arguments):
        started = now(device)
        hidden = extend(history, *arguments)
        times.append(now(device) - started)
        reads.append(sum(t.numel() * t.element_size() for t in cached_tensors(history.cache)))
        return hidden

    recommender.extend = timed
    try:
        yield
    finally:
        del recommender.extend


@torch.no_grad()
def rerun(bench: Bench, kind: str, users: int) -> dict:
    """The same users and beams without a cache."""
    model, rows = bench.model.eval(), _histories(bench, kind, users)
    lengths = rows[model.ITEM_SEQ_LEN]
    codes = model.codes(rows[model.ITEM_SEQ][:, : int(lengths.max())])
    with autocast(bench.base):
        for _ in range(2):  # the first warms up
            started = now(bench.device)
            slow = rerunning_beams(
                model.recommender, model.codes.trie, codes, lengths, model.num_beams
            )
            seconds = now(bench.device) - started
        fast = model._beams(rows, model.num_beams, None)
    figures = {"users_per_second": users / seconds}
    figures["scores_differ_by"] = float((slow.scores - fast.scores).abs().max())
    for batch in (4, *(bench.config(o)["eval_batch_size"] for o in (SMALL_CARD, LARGE_CARD))):
        ours = bench.find("decode", f"{batch} users, {kind}", "users_per_second")
        figures[f"times_slower_than_{batch}"] = ours and ours * seconds / users
    return figures


# The plan, and what the best settings are -----------------------------------------------------


def plan(bench: Bench) -> None:
    """What was predicted of the rows of other sections against what was measured."""
    for row in [row for row in bench.rows if row.get("plan_gib") and row.get("peak_gib")]:
        off = row["plan_gib"] / row["peak_gib"] - 1
        name = f"{row['section']}, {row['name']}"
        figures = {key: row[key] for key in ("plan_gib", "peak_gib")}
        bench.record("plan", name, {**figures, "off_by": off, "passed": abs(off) <= 0.1})


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


def compile(bench: Bench) -> None:
    """Layers compiled by torch, activations kept; they stay so, this section comes last."""
    tokens = 256 if bench.rehearse else 8192
    loader = bench.loaders(bench.config(SMALL_CARD, max_tokens=tokens))[0]
    for layer in bench.model.recommender.backbone.get_base_model().layers:
        layer.compile(dynamic=True)
    bench.measure(
        "compile",
        f"{tokens} tokens, kept",
        lambda: time_steps(bench, False, loader, bench.steps(4)),
    )


def checks(bench: Bench) -> None:
    """Fast paths against slow ones, see there."""
    from tests.benchmarks.gpu_checks import CHECKS

    for name, work in CHECKS.items():
        bench.measure("checks", name, lambda w=work: w(bench.device))


DEFAULT_SECTIONS = (checks, train, decode, plan)
SECTIONS = {section.__name__: section for section in (*DEFAULT_SECTIONS, sweep, compile)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", default=",".join(s.__name__ for s in DEFAULT_SECTIONS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shape", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    options, rest = parser.parse_known_args(arguments)
    sections = [SECTIONS[name] for name in options.sections.split(",")]
    values = {**(REHEARSAL if options.rehearse else {}), **parse_arguments(rest)}
    values = {"dataset": "Beauty", "show_progress": False, "state": "WARNING", **values}
    device = Config("ETEGRecLlama", None, [SMALL_CARD], values)["device"]
    with tempfile.TemporaryDirectory() as folder:
        folder = broadcast_object_list([folder])[0]  # the main process's
        if PartialState().is_main_process:
            write_random_weights(_shape(options), folder, device)
        PartialState().wait_for_everyone()
        bench = Bench(options, values, folder)
        for section in sections:
            try:
                section(bench)
            except Exception as error:  # the others are measured all the same
                bench.record(section.__name__, "whole section", {"error": _in_short(error)})
        PartialState().wait_for_everyone()


def _shape(options: argparse.Namespace) -> dict:
    if options.rehearse:
        return TINY
    shape = options.shape or properties_dir() / "base_model" / "meta-llama" / "Llama-2-7b-hf.json"
    return json.loads(shape.read_text("utf-8"))


def write_random_weights(shape: dict, folder: str, device: torch.device) -> None:
    """A directory as `from_pretrained` wants it, in bf16."""
    with device:
        model = AutoModel.from_config(AutoConfig.for_model(**shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    clear(device)


def _in_short(error: Exception) -> str:
    reason = str(error).strip() or "no reason given"
    return f"{type(error).__name__}: {reason.splitlines()[0][:300]}"


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()

"""A 7B decoder on a GPU: how fast it trains and ranks, beside what the device can do.

Neither speed nor memory depends on the values of weights, so random ones of the shape of
Llama-2-7B are written to a directory and loaded from there, as downloaded ones would be; item
embeddings are random too. The sequences are the data set's.

    python -m tests.benchmarks.gpu --data_path=DIR [--sections=train,decode] [--out=FILE.json]
    accelerate launch --num_processes=2 -m tests.benchmarks.gpu --data_path=DIR --sections=train

Sections, in this order: checks (fast paths against slow ones), train, decode, few (requests of few
users, recorded and launched), plan (what was predicted of what came before it against what was
measured), and if named sweep (budgets of tokens, checkpointing, attention), fused (layers by fewer
kernels) and compiled. A row is printed, and the file written, as soon as it is
measured; what fails is a row with its error. Two sections stand alone: texts (steps that have rows
of tasks of texts, whose tokens are bytes) with its plan, and small, of the default decoder, which
has a page of its own (`small.py`). `--shape=FILE.json` takes the shape of another decoder
(a configuration of transformers), `--rehearse` a tiny one and short measurements, on any device.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from recbole_etegrec.config import Config, properties_dir
from tests.benchmarks.arguments import parse_arguments
from tests.benchmarks.gpu import small
from tests.benchmarks.gpu.bench import SMALL_CARD, Bench, in_short, write_random_weights
from tests.benchmarks.gpu.checks import CHECKS
from tests.benchmarks.gpu.decode import decode, few
from tests.benchmarks.gpu.train import compiled, fused, sweep, texts, train

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}
REHEARSAL = {"lora_r": 4, "code_num": 128, "e_dim": 16, "tokenizer_hidden_sizes": [16]}


def plan(bench: Bench) -> None:
    """What was predicted of the rows of other sections against what was measured."""
    for row in [row for row in bench.rows if row.get("plan_gib") and row.get("peak_gib")]:
        off = row["plan_gib"] / row["peak_gib"] - 1
        name = f"{row['section']}, {row['name']}"
        figures = {key: row[key] for key in ("plan_gib", "peak_gib")}
        bench.record("plan", name, {**figures, "off_by": off, "passed": abs(off) <= 0.1})


def checks(bench: Bench) -> None:
    """Fast paths against slow ones."""
    for name, work in CHECKS.items():
        bench.measure("checks", name, lambda w=work: w(bench.device))


DEFAULT_SECTIONS = (checks, train, decode, few, plan)
FURTHER_SECTIONS = (sweep, fused, compiled, texts)
SECTIONS = {section.__name__: section for section in (*DEFAULT_SECTIONS, *FURTHER_SECTIONS)}
TEXTS = {"title_to_codes": 0.5, "codes_to_title": 0.2, "titles_to_codes": 0.5}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what a command line asks for, by default that of this process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", default=",".join(s.__name__ for s in DEFAULT_SECTIONS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shape", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    options, rest = parser.parse_known_args(arguments)
    names = options.sections.split(",")
    if names == ["small"]:
        own = [text for text in rest if text.startswith(("--parts=", "--datasets="))]
        small.main(own, parse_arguments([text for text in rest if text not in own]), options.out)
        return
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"--sections ({unknown[0]}): there are {', '.join(SECTIONS)}")
    values = {**(REHEARSAL if options.rehearse else {}), **parse_arguments(rest)}
    values = {"dataset": "Beauty", "show_progress": False, "state": "WARNING", **values}
    if with_texts := "texts" in names:
        values = {"tasks": TEXTS, "task_tokens": 4096, **values}
        names = ["texts", "plan"]
    device = Config("ETEGRecLlama", None, [SMALL_CARD], values)["device"]
    with tempfile.TemporaryDirectory() as folder:
        folder = broadcast_object_list([folder])[0]  # the main process's
        if PartialState().is_main_process:
            write_random_weights(_shape(options), folder, device, texts=with_texts)
        PartialState().wait_for_everyone()
        bench = Bench(options, values, folder)
        for section in map(SECTIONS.get, names):
            try:
                section(bench)
            except Exception as error:  # the others are measured all the same
                bench.record(section.__name__, "whole section", {"error": in_short(error)})
        PartialState().wait_for_everyone()


def _shape(options: argparse.Namespace) -> dict:
    if options.rehearse:
        return TINY
    shape = options.shape or properties_dir() / "base_model" / "meta-llama" / "Llama-2-7b-hf.json"
    return json.loads(shape.read_text("utf-8"))


if __name__ == "__main__":
    main()

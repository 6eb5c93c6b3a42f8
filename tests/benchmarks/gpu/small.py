"""The default decoder, from scratch: whole runs, recorded steps against eager ones, ranking.

    python -m tests.benchmarks.gpu --sections=small --data_path=DIR [--out=FOLDER] [--parts=A,B]
        [--datasets=Beauty,ml-100k] [--KEY=VALUE]

    runs      each data set by default, from the command to the test result, alone on the device
    epochs    an epoch recorded and eager, with steps of 16384 and of 4096 tokens; seconds
    ranking   all test users with 20 beams, in batches of 2048 and of 128
    few       one to eight users, a request each, recorded and launched kernel by kernel
    many      eight runs at once: large and small steps with three seeds each, and two more

Each run has a process of its own and a log in the folder; they share one cache of item embeddings,
but `runs` makes its own. All of it takes some 8 minutes on an H100. `--KEY=VALUE` is for all runs,
so that with few epochs all of it can be rehearsed anywhere.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import torch

from recbole_etegrec.config import Config
from recbole_etegrec.data.item_loader import ItemLoader
from recbole_etegrec.evaluation.evaluate import collect_rankings
from recbole_etegrec.losses import objective_weights
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.runs.parts import load_data
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.schedule import Stage
from tests.benchmarks.gpu.few import few_users
from tests.benchmarks.gpu.measure import clear, now
from tests.benchmarks.gpu.timed_run import FILE

STEPS = {"large": {"max_tokens": 16384, "warmup_steps": 50}}
STEPS["small"] = {"max_tokens": 4096, "warmup_steps": 200}
SEEDS, FURTHER_SEEDS = (2020, 2021, 2022), (2023, 2024)
WIDTH = 512  # of item embeddings from two sources
METRICS = ("recall@10", "ndcg@10")

Rows = Iterator[tuple[str, dict]]


class Small:
    """What the parts share.

    Args:
        values: of all configurations.
        folder: takes runs, their logs and the table.
        datasets: of which the first is that of all parts but `runs`.
    """

    def __init__(self, values: dict, folder: Path, datasets: list[str]):
        self.values = {**values, "show_progress": False, "state": "INFO"}
        self.folder, self.datasets = folder, datasets

    def config(self, **more) -> Config:
        """A configuration of the first data set, for this process."""
        values = {"dataset": self.datasets[0], **self.values, "state": "ERROR", **more}
        return Config("ETEGRecLlama", config_dict=values)

    def start(self, name: str, histories: bool, threads: int | None = None, **more):
        """Start a run in a process of its own; returns what waits for its end and reads it."""
        run_dir, log = self.folder / name, self.folder / f"{name}.log"
        values = {"model": "ETEGRecLlama", **self.values, **more, "run_dir": str(run_dir)}
        order = json.dumps({"values": values, "histories": histories})
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else None
        started = time.perf_counter()
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.gpu.timed_run"],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            )
        process.stdin.write(order)
        process.stdin.close()

        def finish() -> dict:
            if process.wait():
                raise RuntimeError(f"{name} failed, see {log}: {log.read_text().splitlines()[-1]}")
            found = json.loads((run_dir / FILE).read_text())
            return {**found, "process_seconds": time.perf_counter() - started}

        return finish


def runs(small: Small) -> Rows:
    """Each data set to the end, alone."""
    for dataset in small.datasets:
        cache = str(small.folder / f"embeddings of {dataset}")
        work = small.start(f"run-{dataset}", True, dataset=dataset, embedding_cache=cache)
        yield f"{dataset}, a whole run", _figures(work())


def _figures(found: dict) -> dict:
    spent = found["seconds"]
    training = sum(spent.get(name, 0.0) for name in ("alternation", "joint", "final"))
    before = {name: spent.get(name, 0.0) for name in ("embeddings", "codebooks", "pretraining")}
    return {
        "process": found["process_seconds"],
        "run": spent["run"],
        **before,
        "before_training": sum(before.values()),
        "training": training,
        "test": spent["test"],
        "training_and_test": training + spent["test"],
        "peak_gib": found.get("peak_gib"),
        **{f"valid {name}": found["valid"][name] for name in METRICS},
        **{f"test {name}": found["test"][name] for name in METRICS},
    }


def epochs(small: Small) -> Rows:
    """Epochs of the recommender and of pretraining, recorded and eager, on the same weights."""
    model = _untrained(small.config())
    for tokens in (step["max_tokens"] for step in STEPS.values()):
        for recorded in (True, False):
            config = small.config(max_tokens=tokens, cuda_graphs=recorded)
            how = "recorded" if recorded else "eager"
            engine = Engine(config, deepcopy(model), RunDirectory(small.folder))
            loader = load_data(config)[1][0]
            stage = Stage("epoch", "recommender", objective_weights(config, "recommender"))
            yield f"{tokens} tokens, recommender, {how}", _epochs_of(engine, stage, loader, 1)
            if tokens == STEPS["large"]["max_tokens"]:
                weights = objective_weights(config, "tokenizer")
                stage = Stage("epoch", "tokenizer", weights)
                yield f"{tokens} tokens, tokenizer, {how}", _epochs_of(engine, stage, loader, 1)
                items = ItemLoader(
                    engine.model.n_items, batch_size=config["tokenizer_batch_size"], seed=0
                )
                weights = objective_weights(config, "tokenizer", aligned=False, sequences=False)
                stage = Stage("epoch", "tokenizer", weights, clip=False)
                yield f"pretraining, 10 epochs, {how}", _epochs_of(engine, stage, items, 10)
            del engine
            clear(config["device"])


def _epochs_of(engine: Engine, stage: Stage, loader, number: int) -> dict:
    """Seconds of some epochs with all that comes first, and of as many once shapes are known."""
    engine.freeze_all_but(stage.trains)
    engine.start_optimizer(stage.trains, 1e-4)
    seconds, steps, targets = [], 0, 0
    for turn in range(3):
        steps = targets = 0
        started = now(engine.device)
        for epoch in range(number):
            loader.draw(turn * number + epoch)
            for micro_batches in loader.iterate():
                engine.step(micro_batches, stage)
                steps, targets = steps + 1, targets + micro_batches[0].step_targets
        engine.read_results()
        seconds.append(now(engine.device) - started)
    return {
        "first": seconds[0],
        "later": seconds[2],
        "step_ms": 1000 * seconds[2] / steps,
        "targets_per_second": targets / seconds[2],
        "graphs": len(engine.captured.recordings),
    }


def ranking(small: Small) -> Rows:
    """All test users, whose time does not depend on what the weights have learnt."""
    for kind, users in (("beam", 2048), ("beam", 128), ("fused", 2048)):
        config = small.config(ranking=kind, eval_batch_size=users)
        model = _untrained(config).eval()
        train, _, test = load_data(config)[1]
        for _ in range(2):  # the first warms up
            started = now(config["device"])
            collect_rankings(model, test, train._dataset, config)
            seconds = now(config["device"]) - started
        count = len(test._dataset.inter_feat)
        figures = {"seconds": seconds, "users": count, "users_per_second": count / seconds}
        yield f"{kind}, batches of {users}", figures


def few(small: Small) -> Rows:
    """One to eight users, recorded and launched: seconds of a request and of a step."""
    for kind in ("fused", "beam"):
        model = _untrained(small.config(ranking=kind))
        rows = load_data(small.config())[1][2]._dataset
        longest = rows.inter_feat[rows.item_list_length_field].argsort(descending=True)
        for users in (1, 2, 4, 8):
            asked = rows[longest[:users]].to(model.device)
            yield f"{kind}, {users} users, longest", few_users(model, asked)


def _untrained(config: Config) -> ETEGRecLlama:
    """A model of random item embeddings."""
    dataset = load_data(config)[1][0]._dataset
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(dataset.item_num, WIDTH, generator=generator)
    return ETEGRecLlama(config, dataset, embedding).to(config["device"])


def many(small: Small) -> Rows:
    """Eight runs at once; six of them tell what larger steps are worth."""
    cache = str(small.folder / "embeddings")
    chosen = [(kind, seed) for kind in STEPS for seed in SEEDS]
    chosen += [("large", seed) for seed in FURTHER_SEEDS]
    started = time.perf_counter()
    waiting = {
        (kind, seed): small.start(
            f"many-{kind}-{seed}",
            True,
            threads=2,
            dataset=small.datasets[0],
            embedding_cache=cache,
            **STEPS[kind],
            seed=seed,
        )
        for kind, seed in chosen
    }
    found = {which: finish() for which, finish in waiting.items()}
    yield (
        "eight at once",
        {
            "seconds": time.perf_counter() - started,
            "slowest": max(one["process_seconds"] for one in found.values()),
            "peak_gib": sum(one.get("peak_gib") or 0.0 for one in found.values()),
        },
    )
    for (kind, seed), one in found.items():
        yield f"eight at once: {kind} steps, seed {seed}", _figures(one)
    for history in ("kept", "excluded"):
        for kind in STEPS:
            tests = [found[kind, seed]["histories"][history] for seed in SEEDS]
            yield (
                f"{kind} steps, 3 seeds, history {history}",
                {
                    name: figure
                    for metric in METRICS
                    for name, figure in _mean_and_deviation([t[metric] for t in tests], metric)
                },
            )


def _mean_and_deviation(values: list[float], name: str) -> Iterator[tuple[str, float]]:
    spread = torch.tensor(values, dtype=torch.float64)
    yield name, float(spread.mean())
    yield f"{name} std", float(spread.std())


PARTS: dict[str, Callable[[Small], Rows]] = {
    part.__name__: part for part in (runs, epochs, ranking, few, many)
}


def main(arguments: list[str], values: dict, out: Path | None) -> list[dict]:
    """Measure the parts that are named; prints rows as they come, and all of them in the end.

    Args:
        arguments: ``--parts`` and ``--datasets`` of the command line.
        values: of all configurations.
        out: a folder for runs, logs and ``small.json``; none: one that is gone afterwards.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--datasets", default="Beauty,ml-100k")
    options = parser.parse_args(arguments)
    names = options.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--parts ({unknown[0]}): there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as gone:
        folder = Path(out or gone).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        small = Small(values, folder, options.datasets.split(","))
        rows: list[dict] = []
        for name in names:
            try:
                for row, figures in PARTS[name](small):
                    _keep(rows, folder, {"part": name, "name": row, **figures})
            except Exception as error:  # the others are measured all the same
                reason = f"{type(error).__name__}: {error}"
                _keep(rows, folder, {"part": name, "name": "the part", "error": reason})
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    sys.stdout.write(f"\nsmall, on {device}, torch {torch.__version__}\n")
    sys.stdout.write("".join(_line(row) for row in rows))
    sys.stdout.flush()
    return rows


def _keep(rows: list[dict], folder: Path, row: dict) -> None:
    rows.append(row)
    sys.stdout.write(_line(row))
    sys.stdout.flush()
    (folder / "small.json").write_text(json.dumps(rows, indent=1) + "\n")


def _line(row: dict) -> str:
    shown = {name: value for name, value in row.items() if name not in ("part", "name")}
    figures = (
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in shown.items()
        if value is not None
    )
    return f"{row['part']:9}{row['name']:44}" + "  ".join(figures) + "\n"

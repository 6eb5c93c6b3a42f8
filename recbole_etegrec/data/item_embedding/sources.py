"""The sources of item embeddings by name, each with what it reads of a config."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from recbole_etegrec.config import Config
from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.data.item_embedding.collaborative import collaborative_embedding
from recbole_etegrec.data.item_embedding.file import file_embedding
from recbole_etegrec.data.item_embedding.sasrec import sasrec_embedding, sasrec_run_embedding
from recbole_etegrec.data.item_embedding.text import text_embedding, word_fields


def _collaborative(config: Config, dataset: WholeSequenceDataset) -> np.ndarray:
    return collaborative_embedding(
        dataset,
        width=config["semantic_hidden_size"],
        window=config["cooccurrence_window"],
        seed=config["seed"],
        device=config["device"],
        cache=Path(config["embedding_cache"]),
        show_progress=config["show_progress"],
    )


def _file(config: Config, dataset: WholeSequenceDataset) -> np.ndarray:
    return file_embedding(dataset, Path(config["item_embedding_file"]))


def _sasrec(config: Config, dataset: WholeSequenceDataset) -> np.ndarray:
    if config["sasrec_run"]:
        return sasrec_run_embedding(
            dataset, config["sasrec_run"], eval_args=config["eval_args"], seed=config["seed"]
        )
    return sasrec_embedding(
        dataset,
        width=config["semantic_hidden_size"],
        epochs=config["sasrec_epochs"],
        max_history=config["MAX_ITEM_LIST_LENGTH"],
        window_overlap=config["window_overlap"],
        seed=config["seed"],
        device=config["device"],
        cuda_graphs=config["cuda_graphs"],
        cache=Path(config["embedding_cache"]),
        show_progress=config["show_progress"],
    )


def _text(config: Config, dataset: WholeSequenceDataset) -> np.ndarray:
    files = AtomicFiles.of(config)
    return text_embedding(
        dataset,
        files,
        text_model=config["text_model"],
        text_fields=config["text_fields"] or word_fields(files),
        seed=config["seed"],
        device=config["device"],
        cache=Path(config["embedding_cache"]),
        show_progress=config["show_progress"],
    )


ITEM_EMBEDDINGS: dict[str, Callable[[Config, WholeSequenceDataset], np.ndarray]] = {
    "collaborative": _collaborative,
    "file": _file,
    "sasrec": _sasrec,
    "text": _text,
}

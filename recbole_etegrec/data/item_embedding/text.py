"""Item embeddings from what is written about an item, by a sentence encoder of the user's choice.

No interaction is read. The texts come from the `.item` file itself, whatever columns of it RecBole
loads.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.atomic_header import read_header
from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.data.item_embedding.cache import cached
from recbole_etegrec.data.item_embedding.cold_items import fill_cold_items
from recbole_etegrec.data.item_file import read_items
from recbole_etegrec.errors import UserError, hub_refusal
from recbole_etegrec.storage.digests import bytes_digest

logger = logging.getLogger(__name__)

WORDS = ("token", "token_seq")  # types of fields that are words
_MARKS = ("modules.json", "config.json")  # a model has one of them, the second if of transformers


def text_embedding(
    dataset: WholeSequenceDataset,
    files: AtomicFiles,
    *,
    text_model: str,
    text_fields: Sequence[str],
    seed: int,
    device: torch.device,
    cache: Path,
    show_progress: bool,
) -> np.ndarray:
    """Vectors of the items' texts (Sentence-BERT, EMNLP 2019).

    Items with the same text have the same vector.

    Args:
        files: of the dataset; the texts are in its ``.item``.
        text_model: a model of sentence-transformers.
        text_fields: of an item, that it reads.
        cache: the folder in which the vectors are kept, under a manifest of texts and model.

    Raises:
        UserError: the model cannot be loaded, or no item has any text.
    """
    texts = item_texts(dataset, files, text_fields)
    empty = [item for item, text in enumerate(texts, start=1) if not text]
    if len(empty) == len(texts):
        raise UserError(f"text_fields ({text_fields}): no item has any text in them")
    encoded = cached_texts(
        texts, text_model=text_model, device=device, cache=cache, show_progress=show_progress
    )
    vectors = np.concatenate([np.zeros_like(encoded[:1]), encoded])
    fill_cold_items(vectors, np.array(empty), np.random.default_rng(seed), "have no text")
    return vectors


def cached_texts(
    texts: Sequence[str],
    *,
    text_model: str,
    device: torch.device,
    cache: Path,
    show_progress: bool,
) -> np.ndarray:
    """Vectors of texts ``[n, width]``, each distinct one encoded once; 0 of those that are empty.

    Raises:
        UserError: the model cannot be loaded.
    """
    rows = {text: row for row, text in enumerate(sorted(set(texts) - {""}))}
    logger.info(
        "texts: %d distinct ones of %d items with text",
        len(rows),
        sum(map(bool, texts)),
    )
    manifest = {
        "source": "text: sentence-transformers, fp32",
        "texts": bytes_digest(json.dumps(list(rows)).encode()),
        "model": _identity(text_model),
    }

    def encode() -> np.ndarray:
        return encode_texts(
            list(rows), text_model=text_model, device=device, show_progress=show_progress
        )

    encoded = cached(cache, manifest, encode)
    encoded = np.concatenate([encoded, np.zeros_like(encoded[:1])])  # the last for no text
    return encoded[[rows.get(text, len(rows)) for text in texts]]


def item_texts(
    dataset: WholeSequenceDataset, files: AtomicFiles, text_fields: Sequence[str]
) -> list[str]:
    """The text of each item but the padding item, empty where the `.item` file has none."""
    text_of = join_fields(read_items(files, text_fields))
    return [text_of.get(token, "") for token in dataset.field2id_token[dataset.iid_field][1:]]


def join_fields(table: pd.DataFrame) -> dict[str, str]:
    """The text of each item of a table of its fields, by its token: the first, others by name."""
    names = ["", *(f"{field}: " for field in table.columns[1:])]
    texts = []
    for row in table.to_numpy():
        parts = zip(names, map(str.strip, row), strict=True)
        texts.append(". ".join(name + text for name, text in parts if text))
    return dict(zip(table.index, texts, strict=True))


def word_fields(files: AtomicFiles) -> list[str]:
    """The fields of the `.item` file that are words, which are read where none are named."""
    path = files.path("item")
    if not path.is_file():
        return []
    types = read_header(path, files.separator, files.encoding).types
    return [f for f, kind in types.items() if kind in WORDS and f != files.item_field]


def check_text_model(text_model: str) -> None:
    """Look whether a model of sentence-transformers can be had, without its weights.

    Raises:
        UserError: it is neither a directory with such a model nor on the hub.
    """
    if Path(text_model).is_dir():
        found = any((Path(text_model) / mark).is_file() for mark in _MARKS)
    else:
        # sentence-transformers looks for a bare name among its own.
        name = text_model if "/" in text_model else f"sentence-transformers/{text_model}"
        try:
            found = any(_is_on_hub(name, mark) for mark in _MARKS)
        except Exception as error:  # of many kinds, from no network to no such model
            raise hub_refusal("text_model", name, error) from error
    if not found:
        raise UserError(
            f"text_model ({text_model}): has none of {', '.join(_MARKS)}; name a model of "
            "sentence-transformers"
        )


def _is_on_hub(model: str, file: str) -> bool:
    """Whether a model has a file, on the hub or in the local copy of it."""
    try:
        return bool(hf_hub_download(model, file))
    except RemoteEntryNotFoundError:
        return False


def encode_texts(
    texts: list[str], *, text_model: str, device: torch.device, show_progress: bool
) -> np.ndarray:
    """Vectors ``[n, width]`` of texts by a model of sentence-transformers.

    Raises:
        UserError: the model cannot be loaded, or sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer  # optional, and slow to import
    except ModuleNotFoundError as error:
        raise UserError(
            "item_embedding (text) needs the package sentence-transformers to encode texts: "
            "pip install 'recbole-etegrec[text]'"
        ) from error
    try:
        model = SentenceTransformer(
            text_model,
            device=str(device),
            model_kwargs={"dtype": torch.float32},
            trust_remote_code=False,
        )
    except Exception as error:  # of many kinds, by what its files lack
        raise hub_refusal("text_model", text_model, error) from error
    vectors = model.encode(texts, show_progress_bar=show_progress)
    return vectors.astype(np.float32)


def _identity(text_model: str) -> str | list:
    """What tells a model from others: its name or, of a directory, its files, sizes and times."""
    folder = Path(text_model)
    if not folder.is_dir():
        return text_model
    files = ((file, file.stat()) for file in sorted(folder.rglob("*")) if file.is_file())
    return [[str(f.relative_to(folder)), stat.st_size, stat.st_mtime_ns] for f, stat in files]

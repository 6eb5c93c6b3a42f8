"""What is known of an item without any interaction: vectors of its fields, and of its text.

They are made of items that come later as of the run's own, so the item head can rank both by them.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from recbole_etegrec.config import Config
from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.atomic_header import read_header
from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.data.item_embedding.fields import READ, FieldReader, fit_fields
from recbole_etegrec.data.item_embedding.text import cached_texts, join_fields, word_fields
from recbole_etegrec.data.item_file import read_items
from recbole_etegrec.errors import UserError, nearest

_OF_READER = ("weights", "axes", "values")


class ItemContent(NamedTuple):
    """Vectors of what is known of items, and how they were made.

    Attributes:
        vectors: standardised, of all items ``[N, d_c]``; row 0, the padding item's, is zero.
        mean: what was taken from the vectors as they were read ``[d_c]``.
        scale: by what they were then divided ``[d_c]``.
        reader: of fields; None where ``item_content`` does not name them.
        text_fields: fields that were encoded as text; empty where ``item_content`` names no text.
    """

    vectors: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    reader: FieldReader | None
    text_fields: list[str]

    @property
    def fields(self) -> list[str]:
        """The fields of the `.item` file that they were made of."""
        return list(dict.fromkeys([*(self.reader.kinds if self.reader else ()), *self.text_fields]))

    def record(self) -> dict[str, np.ndarray]:
        """All of it as arrays by name, to be written to a file."""
        reader = self.reader
        words = [self.text_fields, reader and reader.kinds, reader and reader.terms]
        arrays = {"content": self.vectors, "content_mean": self.mean, "content_scale": self.scale}
        arrays["content_words"] = np.frombuffer(json.dumps(words).encode(), dtype=np.uint8)
        if reader is not None:
            arrays |= {f"content_{name}": getattr(reader, name) for name in _OF_READER}
        return arrays

    @classmethod
    def from_record(cls, arrays: dict[str, np.ndarray]) -> "ItemContent | None":
        """Take up what :meth:`record` gave; None where there is nothing of it."""
        if "content" not in arrays:
            return None
        reader, (text_fields, *words) = None, json.loads(arrays["content_words"].tobytes())
        if words[0] is not None:
            reader = FieldReader(*words, *(arrays[f"content_{name}"] for name in _OF_READER))
        own = (arrays[name] for name in ("content", "content_mean", "content_scale"))
        return cls(*own, reader, text_fields)


def content_sources(config: Config) -> list[str]:
    """The sources that ``item_content`` names: none, one, or several."""
    chosen = config["item_content"] or []
    return list(chosen) if isinstance(chosen, (list, tuple)) else [chosen]


def content_fields(config: Config) -> tuple[dict[str, str], list[str]]:
    """The fields that ``item_content`` reads of the `.item` file, with RecBole's types of them.

    Returns:
        Those that are read as they are, and those that are encoded as text.

    Raises:
        UserError: there is no such file, or it has not the fields.
    """
    files, sources = AtomicFiles.of(config), content_sources(config)
    path = files.path("item")
    if not path.is_file():
        raise UserError(
            f"item_content ({config['item_content']}): no file {path}, which says what items are; "
            "leave item_content out"
        )
    types = read_header(path, files.separator, files.encoding).types
    types.pop(files.item_field, None)
    kinds, texts = {}, []
    if "fields" in sources:
        chosen = config["content_fields"] or types
        kinds = {field: _type_of(field, "content_fields", path, types) for field in chosen}
    if "text" in sources:
        texts = list(config["text_fields"] or word_fields(files))
        for field in texts:
            _type_of(field, "text_fields", path, types)
    return {field: kind for field, kind in kinds.items() if kind in READ}, texts


def _type_of(field: str, key: str, path: Path, types: dict[str, str]) -> str:
    if field not in types:
        raise UserError(
            f"{key}: {path} has no field '{field}' (found {', '.join(types)})"
            f"{nearest(field, types)}"
        )
    return types[field]


def make_content(config: Config, dataset: WholeSequenceDataset) -> ItemContent | None:
    """The content of a dataset's items; None where ``item_content`` names no source.

    Raises:
        UserError: the `.item` file is not there, has not the fields, or says nothing.
    """
    if not content_sources(config):
        return None
    files, (kinds, texts) = AtomicFiles.of(config), content_fields(config)
    tokens = dataset.field2id_token[dataset.iid_field][1:]
    fields = list(dict.fromkeys([*kinds, *texts]))
    table = read_items(files, fields).reindex(tokens, fill_value="")
    reader = None
    if "fields" in content_sources(config):
        reader = fit_fields(table, kinds, config["semantic_hidden_size"])
    parts = _read(config, reader, texts, table)
    raw = np.concatenate(parts, axis=1)
    if not raw.size or (raw == raw[0]).all():
        raise UserError(f"item_content: {files.path('item')} says the same of all items")
    mean = raw.mean(axis=0)
    # Each source has unit mean square.
    scale = [np.full(p.shape[1], np.sqrt(p.var(axis=0).mean()) or 1) for p in parts if p.size]
    scale = np.concatenate(scale).astype(np.float32)
    vectors = ((raw - mean) / scale).astype(np.float32)
    vectors = np.concatenate([np.zeros_like(vectors[:1]), vectors])
    return ItemContent(vectors, mean, scale, reader, texts)


def width_of(content: ItemContent | None) -> int:
    """Numbers of the content of an item; 0 where there is none."""
    return 0 if content is None else content.vectors.shape[1]


def read_content(config: Config, content: ItemContent, table: pd.DataFrame) -> np.ndarray:
    """Content ``[n, d_c]`` of items that came later, as that of the run's own was made.

    Args:
        table: its ``fields``, a row an item.

    Raises:
        UserError: a number is none, or the text model is another.
    """
    raw = np.concatenate(_read(config, content.reader, content.text_fields, table), axis=1)
    if raw.shape[1] != len(content.mean):
        raise UserError(
            f"text_model ({config['text_model']}): item content is {raw.shape[1]} wide, that of "
            f"the run {len(content.mean)}: use the model that the run was trained with"
        )
    return ((raw - content.mean) / content.scale).astype(np.float32)


def _read(
    config: Config, reader: FieldReader | None, texts: list[str], table: pd.DataFrame
) -> list[np.ndarray]:
    """Vectors of rows by each source ``[n, d]``, as they are read."""
    parts = [] if reader is None else [reader.read(table)]
    if texts:
        parts.append(
            cached_texts(
                list(join_fields(table[texts]).values()),
                text_model=config["text_model"],
                device=config["device"],
                cache=Path(config["embedding_cache"]),
                show_progress=config["show_progress"],
            )
        )
    return parts

"""Whose items these are: the ids that tokens had when a run was trained.

RecBole numbers tokens in the order in which the files name them. So other rows, or the same rows
in another order, give other ids to the same items, and weights that were trained with the ids of
then would stand for other items. A run keeps its tokens in the order of their ids; data that are
read to use it are numbered by them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset
from recbole.utils import FeatureType

from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.digests import bytes_digest

Tokens = Mapping[str, Sequence[str]]
_known: list[tuple[Tokens, "Changes"]] = []  # of the blocks of `known_ids` that are being run


@dataclass(frozen=True)
class Identity:
    """What a run was trained on.

    Attributes:
        tokens: by field, in the order of their ids, that of the padding included.
        interactions: a digest of who has done what, in which order.
        users: a digest of the users in the order of their ids.
        vectors: a digest of the item embeddings; None for a model that has none.
    """

    tokens: dict[str, list[str]]
    interactions: str
    users: str
    vectors: str | None = None

    @classmethod
    def of(cls, dataset: Dataset, fields: Iterable[str] | None = None) -> "Identity":
        """The identity of a dataset that has been read and not yet been split.

        Args:
            fields: whose tokens are kept; none: all that have ids.
        """
        fields = list(dataset.field2id_token) if fields is None else fields
        tokens = {str(name): list(map(str, dataset.field2id_token[name])) for name in fields}
        made = getattr(dataset, "digests", None)  # of columns, when they were made
        if made is None:
            users = dataset.field2id_token[dataset.uid_field]
            made = _interactions_digest(dataset), _digest_of_words(users)
        return cls(tokens, *made)

    def record(self) -> dict[str, Any]:
        """What is written of it: plain data, with a digest of its own."""
        values = asdict(self)
        return {**values, "digest": _digest_of_values(values)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Identity":
        """Take up what :meth:`record` gave.

        Raises:
            ValueError: it is not as it was.
        """
        values = {name: value for name, value in record.items() if name != "digest"}
        if record.get("digest") != _digest_of_values(values):
            raise ValueError("it is not as it was written")
        return cls(**values)


@dataclass
class Changes:
    """How data that were read with known ids differ from those of then.

    Attributes:
        gone: by field, the ids of tokens that the data no longer have.
        new: by field, how many tokens have no id, and are left out.
    """

    gone: dict[str, np.ndarray] = field(default_factory=dict)
    new: dict[str, int] = field(default_factory=dict)

    def sentence(self, dataset: Dataset, interactions: bool) -> str:
        """Say what has changed; empty if nothing has.

        Args:
            dataset: that was read.
            interactions: whether those that are left differ.
        """
        parts = []
        for name, called in ((dataset.iid_field, "items"), (dataset.uid_field, "users")):
            if gone := len(self.gone.get(name, ())):
                never = " and are not recommended" if called == "items" else ""
                parts.append(f"{gone} {called} are gone{never}")
            if new := self.new.get(name, 0):
                parts.append(f"{new} {called} are new and not known to it")
        if interactions:
            parts.append("the interactions of those it knows are others")
        if not parts:
            return ""
        return f"{dataset.dataset_name} has changed since the run was trained: {', '.join(parts)}"


def ids_to_keep() -> tuple[Tokens, Changes] | None:
    """The lists of tokens of the block of `known_ids` that this is called in, if it is in one."""
    return _known[-1] if _known else None


@contextmanager
def known_ids(tokens: Tokens) -> Iterator[Changes]:
    """Let datasets that are made in the block give tokens the ids that they have in a list.

    Interactions with other items are left out, and such items of pre-split histories; so are users
    that are not known, where users are among the fields. Other fields take for padding what they do
    not know.

    Args:
        tokens: by field, in the order of their ids; fields without a list are numbered as ever.

    Yields:
        What has changed, to be read when a dataset has been made.
    """
    changes = Changes()
    number, prepare = Dataset._remap, Dataset._user_item_feat_preparation

    def remap(dataset: Dataset, places: list[tuple]) -> None:
        known = next((name for _, name, _ in places if name in tokens), None)
        if known is None:
            number(dataset, places)
        else:
            _number(dataset, places, known, tokens[known], changes)

    def leave_out(dataset: Dataset) -> None:
        _leave_out_unknown(dataset, tokens)
        prepare(dataset)

    Dataset._remap, Dataset._user_item_feat_preparation = remap, leave_out
    _known.append((tokens, changes))
    try:
        yield changes
    finally:
        _known.pop()
        Dataset._remap, Dataset._user_item_feat_preparation = number, prepare


def _number(
    dataset: Dataset, places: list[tuple], name: str, order: Sequence[str], changes: Changes
) -> None:
    """RecBole's own numbering, but by a list of tokens; 0 stands for all others."""
    found, ends = dataset._concat_remaped_tokens(places)
    index = pd.Index(order[1:], dtype=object)
    ids = index.get_indexer(found) + 1
    changes.gone[name] = np.setdiff1d(np.arange(1, len(order)), ids)
    changes.new[name] = pd.Series(found[ids == 0]).nunique()
    token_of, id_of = np.array(order), {token: number for number, token in enumerate(order)}
    for (feat, column, kind), part in zip(places, np.split(ids, ends), strict=True):
        dataset.field2id_token.setdefault(column, token_of)
        dataset.field2token_id.setdefault(column, id_of)
        if kind == FeatureType.TOKEN_SEQ:
            part = np.split(part, np.cumsum(feat[column].map(len))[:-1])
        feat[column] = part


def _leave_out_unknown(dataset: Dataset, tokens: Tokens) -> None:
    """Drop the rows whose user or item has no id, and such items of histories."""
    for feat, column in (
        (dataset.user_feat, dataset.uid_field),
        (dataset.item_feat, dataset.iid_field),
    ):
        if feat is not None and column in tokens:
            feat.drop(feat.index[feat[column] == 0], inplace=True)
    table = dataset.inter_feat
    keep = np.ones(len(table), dtype=bool)
    for column in (dataset.uid_field, dataset.iid_field):
        if column in tokens:
            keep &= (table[column] != 0).to_numpy()
    history = dataset.iid_field + dataset.config["LIST_SUFFIX"]
    if dataset.iid_field in tokens and history in table:
        keep &= _shorten_histories(table, history, dataset.config["LIST_SUFFIX"])
    if not keep.any():
        raise UserError(
            f"dataset: {dataset.dataset_name} has no interaction of a user and an item that the "
            "run knows: bring back the data that it was trained on"
        )
    if keep.all():
        return
    if dataset.benchmark_filename_list is not None:
        part = np.repeat(np.arange(len(dataset.file_size_list)), dataset.file_size_list)
        counts = np.bincount(part[keep], minlength=len(dataset.file_size_list))
        dataset.file_size_list = counts.tolist()
    dataset.inter_feat = table[keep].reset_index(drop=True)


def _shorten_histories(table: pd.DataFrame, history: str, suffix: str) -> np.ndarray:
    """Take unknown items out of histories, and what lists beside these say of them.

    Returns:
        Which rows still have a history, or never had one.
    """
    rows = table[history].to_list()
    unknown = [row for row, items in enumerate(rows) if (items == 0).any()]
    keep = np.ones(len(rows), dtype=bool)
    for column in [name for name in table if name.endswith(suffix)]:
        lists = table[column].to_list()
        for row in unknown:
            if len(lists[row]) == len(rows[row]):
                lists[row] = lists[row][rows[row] != 0]
                keep[row] = len(lists[row]) > 0
        table[column] = lists
    return keep


def _interactions_digest(dataset: Dataset) -> str:
    """A digest of items by user, in the order by which they are split."""
    table, suffix = dataset.inter_feat, dataset.config["LIST_SUFFIX"]
    ids, users = np.unique(table[dataset.uid_field], return_inverse=True)
    names = dataset.field2id_token[dataset.uid_field][ids].astype(str)
    by_name = np.argsort(names)  # the ids of users depend on the order of the file
    users, items = np.argsort(by_name)[users], table[dataset.iid_field].to_numpy()
    presplit = dataset.benchmark_filename_list is not None
    part = np.zeros(len(users), dtype=np.int64)
    if presplit:
        part = np.repeat(np.arange(len(dataset.file_size_list)), dataset.file_size_list)
    order = np.arange(len(users))
    if presplit or dataset.config["eval_args"]["order"] == "TO":
        times = table.get(dataset.time_field, order)
        order = np.lexsort((times, users, part))
    content = [column[order] for column in (users, items, part)]
    history = dataset.iid_field + suffix
    if (histories := getattr(dataset, "histories", None)) is not None:
        content += [histories.items, histories.lengths]
    elif history in table:
        rows = table[history].to_list()
        content += [np.concatenate(rows), np.array(list(map(len, rows)))]
    users_named = _digest_of_words(names[by_name]).encode()
    return bytes_digest(users_named + b"".join(x.astype(np.int64).tobytes() for x in content))


def _digest_of_words(words: Iterable[str]) -> str:
    return bytes_digest("\n".join(map(str, words)).encode())


def _digest_of_values(values: Mapping[str, Any]) -> str:
    return bytes_digest(json.dumps(values, sort_keys=True).encode())

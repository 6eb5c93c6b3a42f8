"""What each dataset of RecBole does here: cells as they stand, the order of time, no silence.

RecBole rounds times to float32 before it sorts by them, in which moments of two minutes are one;
and it leaves interactions out, by filters and for want of a line in other files, without a word.
"""

import csv
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import recbole.data.dataset.dataset as recbole_dataset
from recbole.data.dataset import Dataset
from recbole.utils import FeatureSource, FeatureType

from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.item_file import read_texts
from recbole_etegrec.data.rules import CLASSIFIERS
from recbole_etegrec.data.times import exact_ranks
from recbole_etegrec.errors import UserError

logger = logging.getLogger(__name__)

FILTERS = (
    "val_interval",
    "rm_dup_inter",
    "user_inter_num_interval",
    "item_inter_num_interval",
)


class CheckedDataset(Dataset):
    """A mixin for a class of RecBole's datasets, which comes after it."""

    def _load_feat(self, filepath: str, source: FeatureSource) -> pd.DataFrame | None:
        read = partial(_read_csv, exact=f"{self.time_field}:float")
        with _in_recbole(pd=SimpleNamespace(**{**vars(pd), "read_csv": read})):
            return super()._load_feat(filepath, source)

    # The order of time ----------------------------------------------------------------------------

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        super()._load_inter_feat(token, dataset_path)
        table, field = self.inter_feat, self.time_field
        self._moments = None
        if field not in table or self.field2type[field] != FeatureType.FLOAT:
            return
        self._moments = table[field].to_numpy()
        if self._moments.dtype.kind != "i" and table[field].notna().all():
            self._moments = exact_ranks(self._texts_of_times())
        values = table[field].astype(np.float64)
        if self.benchmark_filename_list is not None and values.notna().all():
            values = np.unique(self._moments, return_inverse=True)[1]  # no filter wants them
        table[field] = values.astype(np.float64)

    def _texts_of_times(self) -> pd.Series:
        files = AtomicFiles.of(self.config)
        names = [f"{part}.inter" for part in self.benchmark_filename_list or ()] or ["inter"]
        read = (read_texts(files.path(name), files, [self.time_field]) for name in names)
        return pd.concat(read, ignore_index=True)[self.time_field]

    def _remap_ID_all(self) -> None:  # noqa: N802  RecBole's name
        """Number tokens in the order of the file, then put the interactions in that of time.

        RecBole's own sorting, by rounded times, keeps the order of what it takes for equal.
        """
        super()._remap_ID_all()
        presplit = self.benchmark_filename_list is not None
        if self._moments is not None and not presplit and self.config["eval_args"]["order"] == "TO":
            order = np.argsort(self._moments, kind="stable")
            if (np.diff(order) != 1).any():
                self.inter_feat = self.inter_feat.iloc[order].reset_index(drop=True)
        del self._moments  # rows that are dropped from now on are in order

    def _reset_index(self) -> None:
        """Number rows anew, and keep the moments of those that are left."""
        for name in self.feat_name_list:
            if getattr(self, name).empty:
                file = f"{self.dataset_name}.{name.removesuffix('_feat')}"
                raise UserError(f"val_interval ({self.config['val_interval']}) leaves no {file}")
        if self._moments is not None:
            self._moments = self._moments[self.inter_feat.index]
        super()._reset_index()

    # What is left out -----------------------------------------------------------------------------

    def _data_processing(self) -> None:
        if self.benchmark_filename_list is not None:
            for key in FILTERS:
                if self._filters_by(key):
                    logger.warning(
                        "%s (%s) has no effect: pre-split files are not filtered",
                        key,
                        self.config[key],
                    )
        super()._data_processing()

    def _filters_by(self, key: str) -> bool:
        return self.config[key] not in (None, {}, "[0,inf)")

    @contextmanager
    def _saying(self, why: str) -> Iterator[None]:
        """Say how many interactions are left out in the block.

        Raises:
            UserError: none remains.
        """
        before = len(self.inter_feat)
        yield
        after = len(self.inter_feat)
        if after == 0:
            raise UserError(f"dataset {self.dataset_name}: no interaction is left, by {why}")
        if after < before:
            logger.warning("%d of %d interactions are left out, by %s", before - after, before, why)

    def _filter_nan_user_or_item(self) -> None:
        with self._saying(f"an empty {self.uid_field} or {self.iid_field}"):
            for feat in (self.inter_feat, self.user_feat, self.item_feat):
                if feat is not None:
                    ids = [name for name in (self.uid_field, self.iid_field) if name in feat]
                    feat.dropna(subset=ids, inplace=True)

    def _remove_duplication(self) -> None:
        """Keep a user's first or last interaction with each item; equal times keep their order."""
        keep = self.config["rm_dup_inter"]
        if keep is None:
            return
        self._check_field("uid_field", "iid_field")
        with self._saying(f"rm_dup_inter ({keep})"):
            feat = self.inter_feat
            if self._moments is not None:
                feat = feat.iloc[np.argsort(self._moments[feat.index], kind="stable")]
            self.inter_feat = feat.drop_duplicates([self.uid_field, self.iid_field], keep=keep)

    def _filter_by_field_value(self) -> None:
        with self._saying(f"val_interval ({self.config['val_interval']})"):
            self._count_lines = {
                field: len(feat)
                for field, feat in (
                    (self.uid_field, self.user_feat),
                    (self.iid_field, self.item_feat),
                )
                if feat is not None
            }
            super()._filter_by_field_value()

    def _filter_inter_by_user_or_item(self) -> None:
        if self.config["filter_inter_by_user_or_item"] is not True:
            return
        for suffix, field in (("user", self.uid_field), ("item", self.iid_field)):
            feat = getattr(self, f"{suffix}_feat")
            if feat is None:
                continue
            filtered = self._count_lines[field] - len(feat)
            known = self.inter_feat[field].isin(feat[field].to_numpy())
            lacking = self.inter_feat.loc[~known, field].nunique()
            why = f"{self.dataset_name}.{suffix}, which lacks {lacking} {suffix}s of them"
            if filtered:
                why += f" ({filtered} of its lines are left out by val_interval)"
            with self._saying(f"{why} (filter_inter_by_user_or_item)"):
                self.inter_feat = self.inter_feat[known]

    def _filter_by_inter_num(self) -> None:
        keys = ("user_inter_num_interval", "item_inter_num_interval")
        chosen = [f"{key} ({self.config[key]})" for key in keys if self._filters_by(key)]
        # They may be views of other tables, of which RecBole drops rows in place.
        self.inter_feat = self.inter_feat.copy()
        with self._saying(" and ".join(chosen)), _in_recbole(Counter=_count):
            super()._filter_by_inter_num()

    def _fill_nan(self) -> None:
        for name in self.feat_name_list:
            feat = getattr(self, name)
            padding = name in ("user_feat", "item_feat")  # has a row, and no value
            for field in feat:
                if self.field2type[field] != FeatureType.FLOAT:
                    continue
                missing = int(feat[field].isna().sum()) - padding
                if missing > 0:
                    logger.warning(
                        "%d of %d lines of %s have no %s, and get the mean",
                        missing,
                        len(feat) - padding,
                        name.removesuffix("_feat"),
                        field,
                    )
        super()._fill_nan()

    def _set_label_by_threshold(self) -> None:
        threshold = self.config["threshold"]
        if threshold is not None and self.config["MODEL_TYPE"] not in CLASSIFIERS:
            logger.warning(
                "threshold (%s) has no effect: %s ranks, and takes every interaction for a "
                "positive one; val_interval leaves some out",
                threshold,
                self.config["model"],
            )
        super()._set_label_by_threshold()


@contextmanager
def _in_recbole(**other: Any) -> Iterator[None]:
    """Replace what RecBole's dataset module calls by these names."""
    own = {name: getattr(recbole_dataset, name) for name in other}
    vars(recbole_dataset).update(other)
    try:
        yield
    finally:
        vars(recbole_dataset).update(own)


def _read_csv(*args: Any, exact: str, **options: Any) -> pd.DataFrame:
    """Read a table with pandas' parser in C, to the same decimals as its parser in Python.

    A quotation mark is read as it stands; whole numbers of the column ``exact`` are not rounded.
    """
    options["dtype"] = {name: kind for name, kind in options["dtype"].items() if name != exact}
    if len(options["delimiter"]) == 1:  # the parser in C knows no other
        options |= {"engine": "c", "float_precision": "high"}
    return pd.read_csv(*args, **options, quoting=csv.QUOTE_NONE)


def _count(values: np.ndarray | None = None) -> Counter:
    """Count how often each value occurs."""
    if values is None:
        return Counter()
    codes, distinct = pd.factorize(values)
    return Counter(dict(zip(distinct, np.bincount(codes).tolist(), strict=True)))

"""The kinds of raw data, and the arguments of each. Nothing heavy is imported."""

from collections.abc import Mapping
from typing import NamedTuple


class Kind(NamedTuple):
    """What `prepare` asks for one kind of raw data, besides ``out`` and ``overwrite``.

    Attributes:
        needed, optional: its arguments, and what each is.
        files: those of the arguments that are files, which must exist.
        example: of the needed ones.
    """

    summary: str
    needed: Mapping[str, str]
    optional: Mapping[str, str]
    files: frozenset[str]
    example: str

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of all that it may be given."""
        return ("out", *self.needed, *self.optional, "overwrite")


_COLUMNS = {
    "user": "the column of users",
    "item": "the column of items",
    "time": "the column of times: numbers, or dates",
}
_ITEMS = {
    "rating": "the column of ratings",
    "items": "a file of the same kind with one line per item",
    "item_fields": "columns of --items to keep, name or name:type, separated by commas",
}
_TABLE = "--user who --item what --time when"

KINDS: dict[str, Kind] = {
    "amazon": Kind(
        "Amazon's review dumps of 2014, 2018 and 2023.",
        {"reviews": "the file of reviews: .json or .jsonl, gzipped or not"},
        {"meta": "the file of products, for titles and categories"},
        frozenset({"reviews", "meta"}),
        "--reviews reviews_Beauty_5.json.gz",
    ),
    "csv": Kind(
        "A table of interactions, such as .csv or .tsv.",
        {"input": "the file of interactions", **_COLUMNS},
        {
            **_ITEMS,
            "separator": "what separates columns, if the file does not show it",
            "header": "False if the file has none; columns are then numbers from 0",
        },
        frozenset({"input", "items"}),
        f"--input log.csv {_TABLE}",
    ),
    "jsonl": Kind(
        "Records of interactions, one JSON object a line.",
        {"input": "the file of interactions", **_COLUMNS},
        _ITEMS,
        frozenset({"input", "items"}),
        f"--input log.jsonl {_TABLE}",
    ),
    "sequences": Kind(
        "Sequences as S3-Rec has them: a line has a user and then its items in their order.",
        {"input": "the file of sequences"},
        {},
        frozenset({"input"}),
        "--input Beauty.txt",
    ),
    "etegrec": Kind(
        "The split that ETEGRec was published with.",
        {
            "train": "the training rows, X.train.jsonl",
            "valid": "the validation rows, X.valid.jsonl",
            "test": "the test rows, X.test.jsonl",
            "map": "the items' numbers, X.emb_map.json",
        },
        {"embeddings": "the item embeddings, a .npy file"},
        frozenset({"train", "valid", "test", "map", "embeddings"}),
        "--train X.train.jsonl --valid X.valid.jsonl --test X.test.jsonl --map X.emb_map.json",
    ),
}

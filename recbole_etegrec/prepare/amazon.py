"""Amazon's review dumps of 2014, 2018 and 2023, as atomic files.

The years differ in field names and spellings; each record shows which year it is from.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_etegrec.data.cells import MISSING
from recbole_etegrec.errors import UserError
from recbole_etegrec.prepare.atomic import (
    InteractionWriter,
    ItemWriter,
    clean,
    refuse_existing,
)
from recbole_etegrec.prepare.records import BadLines, number_of, read_records, text_of
from recbole_etegrec.storage.atomic import staged

ITEM_FIELDS = {
    "item_id": "token",
    "title": "token_seq",
    "brand": "token",
    "categories": "token_seq",
    "description": "token_seq",
    "price": "float",
}
# Of each field the names it has had, the first one present being taken.
REVIEW_NAMES = {
    "user": ("reviewerID", "user_id"),  # 2014 and 2018, 2023
    "item": ("parent_asin", "asin"),  # the variants of a product share their parent (2023)
    "rating": ("overall", "rating"),
    "time": ("unixReviewTime", "timestamp"),  # seconds, milliseconds
}
META_NAMES = {
    "item_id": ("parent_asin", "asin"),
    "title": ("title",),
    "brand": ("brand", "store"),
    "categories": ("categories", "category"),
    "description": ("description", "features"),
}
_AMOUNT = re.compile(r"(?:from\s+)?\$?\s*(\d[\d,]*(?:\.\d+)?)")


def prepare_amazon(
    out: Path, reviews: Path, meta: Path | None = None, overwrite: bool = False
) -> str:
    """Write ``X.inter``, and ``X.item`` where `meta` is given, to the folder `out` named X.

    Items without an interaction are not written.

    Returns:
        What was written and what was left out, a line for each file.

    Raises:
        UserError: files exist already, cannot be read, or hold no review.
    """
    name = out.absolute().name
    refuse_existing(out, [".inter", ".item"] if meta else [".inter"], overwrite)
    with staged(out) as folder:
        bad = BadLines()
        writer = InteractionWriter(folder / f"{name}.inter", rated=True)
        for review in _reviews(reviews, bad):
            writer.add(*review)
        if not writer.items:
            raise UserError(f"reviews {reviews}: no review found, {bad}")
        report = [f"{reviews}: {bad}", f"{name}.inter: {writer.finish()}"]
        if meta:
            report += _write_items(folder / f"{name}.item", meta, writer.items)
    return "\n".join(report) + "\n"


def _reviews(path: Path, bad: BadLines) -> Iterator[tuple[str, str, float, str]]:
    """User, item, time and rating of each review."""
    for number, record in read_records(path, bad):
        values = {field: _first(record, names) for field, names in REVIEW_NAMES.items()}
        user, item = clean(values["user"] or ""), clean(values["item"] or "")
        time, rating = number_of(values["time"]), number_of(values["rating"])
        if user in MISSING or item in MISSING:
            bad.add(number, "no user or no item")
        elif time is None:
            bad.add(number, "no time")
        else:
            yield user, item, time, "" if rating is None else f"{rating:g}"


def _write_items(path: Path, meta: Path, wanted: set[str]) -> list[str]:
    bad, writer = BadLines(), ItemWriter(path, ITEM_FIELDS, wanted)
    for number, record in read_records(meta, bad):
        values = [_first(record, names) for names in META_NAMES.values()]
        cells = [clean(html.unescape(text_of(value))) for value in values]
        if cells[0] in MISSING:
            bad.add(number, "no item")
        else:
            writer.add([*cells, _price(record.get("price"))])
    return writer.finish(meta, bad)


def _first(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if record.get(name) not in (None, "", [])), None)


def _price(value: Any) -> str:
    """The amount, the lower one of a range; empty where there is none (2018 has HTML there)."""
    found = _AMOUNT.match(str(value).strip())
    return found[1].replace(",", "") if found else ""

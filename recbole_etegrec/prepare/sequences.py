"""Sequences, one user a line, as S3-Rec and many papers after it have them, as atomic files."""

from collections import Counter
from pathlib import Path

from recbole_etegrec.data.cells import MISSING
from recbole_etegrec.errors import UserError
from recbole_etegrec.prepare.atomic import InteractionWriter, clean, refuse_existing
from recbole_etegrec.prepare.records import BadLines, read_lines
from recbole_etegrec.storage.atomic import staged


def prepare_sequences(out: Path, input: Path, overwrite: bool = False) -> str:
    """Write ``X.inter`` to the folder `out` named X.

    A line is a user and then its items in their order, with spaces or tabs between them. The place
    in the sequence is the time. Several lines of one user follow one another.

    Raises:
        UserError: the file exists already, cannot be read, or no line has a user and an item.
    """
    name = out.absolute().name
    refuse_existing(out, [".inter"], overwrite)
    with staged(out) as folder:
        bad, lengths = BadLines(), Counter()
        writer = InteractionWriter(folder / f"{name}.inter", rated=False)
        for number, line in read_lines(input):
            cells = [clean(cell) for cell in line.decode("utf-8", "replace").split()]
            if len(cells) < 2 or not MISSING.isdisjoint(cells):
                if cells:
                    bad.add(number, "no user and items")
                continue
            user, *items = cells
            for place, item in enumerate(items, start=lengths[user]):
                writer.add(user, item, place)
            lengths[user] += len(items)
        if not writer.items:
            raise UserError(f"input {input}: no line with a user and its items, {bad}")
        counts = writer.finish()
    return f"{input}: {bad}\n{name}.inter: {counts}\n"

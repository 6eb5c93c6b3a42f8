"""Interactions with a long tail, of any number, written a part at a time."""

from pathlib import Path

import numpy as np
import pandas as pd

USER_HAS, ITEM_HAS = 20, 50  # interactions, on average
_LINES = 5_000_000  # at once


def generate(folder: Path, interactions: int, seed: int = 0) -> None:
    """Write ``folder/zipf/zipf.inter``: users of very different activity, few popular items.

    A user has 20 interactions on average (log-normal), an item 50 (popularity after Zipf, exponent
    0.8); lines are in random order.
    """
    rng = np.random.default_rng(seed)
    users, items = interactions // USER_HAS, interactions // ITEM_HAS
    popularity = np.cumsum(1 / np.arange(1, items + 1) ** 0.8)
    activity = np.cumsum(rng.lognormal(sigma=1.0, size=users))
    columns = {
        name: (weights, rng.permutation(len(weights)))
        for name, weights in (("user_id:token", activity), ("item_id:token", popularity))
    }
    (folder / "zipf").mkdir()
    with (folder / "zipf" / "zipf.inter").open("w") as file:
        for begin in range(0, interactions, _LINES):
            lines = min(_LINES, interactions - begin)
            drawn = {
                name: numbers[np.searchsorted(weights, rng.random(lines) * weights[-1])]
                for name, (weights, numbers) in columns.items()
            }
            drawn["timestamp:float"] = rng.integers(1_600_000_000, 1_700_000_000, lines)
            _write(pd.DataFrame(drawn), file, header=begin == 0)


def _write(table: pd.DataFrame, file, header: bool) -> None:
    if header:
        file.write("\t".join(table) + "\n")
    rows = zip(*(table[name].tolist() for name in table), strict=True)
    file.writelines(f"{user}\t{item}\t{time}\n" for user, item, time in rows)

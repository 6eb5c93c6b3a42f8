"""What `recbole-etegrec codes` prints: how the items of a finished run are coded."""

from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from recbole_etegrec.errors import UserError, nearest
from recbole_etegrec.inference.catalogue import Catalogue, cut
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.runs.load import load_run, read_own_config
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.tokenizer import CodeHealth

_EXAMPLES, _NEIGHBOURS = 3, 20  # items named for a code, and for an item


def report(run_dir: str, item: str | None = None, config_dict: dict[str, Any] | None = None) -> str:
    """Describe the health and the tree of a run's codes, or one item's codes and its neighbours.

    Args:
        item: the token of the item.
        config_dict: overrides keys of the run's config.

    Raises:
        UserError: `run_dir` is not the directory of a finished run with codes, or has no such item.
    """
    read_own_config(RunDirectory(run_dir))
    config, model, dataset, *_ = load_run(run_dir, config_dict)
    catalogue = Catalogue.from_dataset(dataset)
    tokens = catalogue.tokens[1:]
    if item is not None and item not in tokens:
        raise UserError(f"item '{item}' is not in {config['dataset']}{nearest(item, tokens)}")
    table = pd.DataFrame(model.codes.table[1:].cpu().numpy())  # [N - 1, L]
    table["token"] = tokens
    table["title"] = [title or "" for title in catalogue.titles[1:]]
    if item is not None:
        return _neighbourhood(model, table, tokens.index(item))
    health = model.codes.health(model.codes.table[1:, :-1])
    keys = ("tokenizer", "collision", "code_length", "code_num")
    head = f"{config['model']} on {config['dataset']}: {len(tokens)} items, "
    head += ", ".join(f"{key} {config[key]}" for key in keys)
    health = _health(replace(health, **model.fidelity()))
    return "\n".join([head, "", *health, "", *_tree(model, table)]) + "\n"


def _health(health: CodeHealth) -> list[str]:
    levels = range(len(health.usage))
    return [
        "level".ljust(12) + "".join(f"{level:8}" for level in levels),
        "usage".ljust(12) + "".join(f"{share:8.0%}" for share in health.usage),
        "perplexity".ljust(12) + "".join(f"{number:8.1f}" for number in health.perplexity),
        f"collisions {health.collision_rate:.2%} of items, largest group {health.largest_group}; "
        f"of nearest codes {health.nearest_collision_rate:.2%}",
        f"reconstruction error {health.reconstruction:.4f}",
        f"neighbours kept {health.neighbours_kept:.1%}: of the 10 items nearest to an item, those "
        "that share its first code",
    ]


def _tree(model: ETEGRecLlama, table: pd.DataFrame) -> list[str]:
    """Write a line for each first code: what is below it, and the items nearest to its centre."""
    embedding, first = model.item_embedding[1:], model.codes.table[1:, 0]
    centres = embedding.new_zeros(model.codes.code_num, embedding.shape[1])
    centres.index_add_(0, first, embedding)
    centres /= torch.bincount(first, minlength=len(centres)).clamp_min(1).unsqueeze(1)
    distance = (embedding - centres[first]).norm(dim=1)
    by_centre = table.iloc[distance.argsort(stable=True).tolist()].groupby(0)
    depths = range(2, len(model.codes.table[0]))
    below = {depth: table.drop_duplicates(list(range(depth))).groupby(0).size() for depth in depths}
    head = "".join(f"{f'of {depth} codes':>12}" for depth in depths)
    lines = [f"{'code 0':>6}{'items':>8}{head}  nearest to its centre"]
    for code, size in by_centre.size().sort_values(ascending=False, kind="stable").items():
        counts = "".join(f"{below[depth][code]:12}" for depth in depths)
        rows = by_centre.get_group(code).head(_EXAMPLES).itertuples()
        examples = "; ".join(cut(row.title or row.token) for row in rows)
        lines.append(f"{code:6}{size:8}{counts}  {examples}")
    return lines


def _neighbourhood(model: ETEGRecLlama, table: pd.DataFrame, row: int) -> str:
    """An item's codes, and the items that share most of them, the nearest of these first."""
    codes, embedding = model.codes.table[1:], model.item_embedding[1:]
    shared = (codes == codes[row]).int().cumprod(dim=1).sum(dim=1)
    table = table.assign(
        shared=shared.tolist(), distance=(embedding - embedding[row]).norm(dim=1).tolist()
    )
    levels, item = range(codes.shape[1]), table.iloc[row]
    others = table[(table["shared"] > 0) & (table.index != row)]
    others = others.sort_values(["shared", "distance"], ascending=[False, True], kind="stable")
    lines = [f"item {item.token} {item.title}".rstrip(), f"codes {_codes(item, levels)}", ""]
    if others.empty:
        return "\n".join([*lines, "no other item shares its first code"]) + "\n"
    width = max(5, 4 * len(levels))
    lines.append(f"shared  distance  {'codes':{width}}item")
    for _, other in others.head(_NEIGHBOURS).iterrows():
        name = f"{other.token} {cut(other.title)}".rstrip()
        own = _codes(other, levels)
        lines.append(f"{other.shared:6}{other.distance:10.3f}  {own:{width}}{name}")
    return "\n".join(lines) + "\n"


def _codes(row: pd.Series, levels: range) -> str:
    return " ".join(str(row[level]) for level in levels)

"""The code table: which tuple of codes stands for which item.

An item comes with its semantic codes; items that share them get a last, collision code
0, 1, 2, ... so that tuples are unique. Table and trie are always rebuilt together.
"""

import hashlib
from dataclasses import replace

import torch
from torch import nn

from recbole_etegrec.errors import UserError
from recbole_etegrec.tokenizer.health import CodeHealth
from recbole_etegrec.tokenizer.trie import Trie
from recbole_etegrec.tokenizer.user_codes import UserCodes

ITEMS_A_CODE = 10  # at least, of the codes of one level, where a catalogue is small
_FEWEST, _MOST = 16, 256
EPOCHS, MANY = 200, 40_000  # of pretraining, and the items up to which there are so many


def default_code_num(items: int, code_length: int) -> int:
    """Codes a level of a catalogue: a power of two, of which each level uses most.

    So many that each has `ITEMS_A_CODE` items, but 16 at least and 256 at most: 256 for 2,560
    items and above, 128 for 1,682. With a single semantic code they are 256, for few items can
    share one.

    Args:
        items: without the padding item.
        code_length: codes an item, the collision code included.
    """
    if code_length == 2:
        return _MOST
    return min(max(1 << (items // ITEMS_A_CODE).bit_length() >> 1, _FEWEST), _MOST)


def default_tokenizer_epochs(items: int) -> int:
    """Epochs of pretraining over a catalogue: above `MANY` items no more steps, but 2 epochs.

    Args:
        items: without the padding item.
    """
    return max(EPOCHS * MANY // max(items, MANY), 2)


class ItemCodes(nn.Module):
    """Code table ``[items, L]`` and its trie; row 0, the padding item, is in neither.

    Items that are left out keep their codes, for histories, and are not in the trie.

    Args:
        n_items: items, the padding item included.
        code_length: codes an item ``L``, the collision code included.
        code_num: codes a level ``C``.

    Attributes:
        users: gives users codes by the items that are known of them; None: they have none.
    """

    def __init__(self, *, n_items: int, code_length: int, code_num: int):
        super().__init__()
        self.code_num = code_num
        self.register_buffer("table", torch.full((n_items, code_length), -1))
        self.register_buffer("left_out", torch.zeros(0, dtype=torch.long), persistent=False)
        self.trie: Trie | None = None
        self.users: UserCodes | None = None

    def _apply(self, fn, recurse=True):
        """Take the trie along when the table moves to a device."""
        super()._apply(fn, recurse)
        if self.trie is not None:
            self.build_trie()
        return self

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Codes of items ``[...]`` → ``[..., L]``; the padding item's are all 0."""
        return self.table[items].clamp_min(0)

    def prefix(self, items: torch.Tensor, real: torch.Tensor) -> torch.Tensor | None:
        """What stands before the codes of rows of items ``[B, T]``, as mixed tokens ``[B, U]``.

        Args:
            real: which of the items are known where the row's first target is asked for ``[B, T]``.

        Returns:
            The codes of users, numbered on after those of items; None where users have none.
        """
        if self.users is None:
            return None
        codes = self.users(items, real)
        levels = torch.arange(codes.shape[1], device=codes.device) + self.table.shape[1]
        return codes + levels * self.code_num

    def rebuild(self, semantic_codes: torch.Tensor) -> CodeHealth:
        """Take new semantic codes, settle collisions, build the trie.

        Args:
            semantic_codes: ``[items - 1, L - 1]``, from item 1 on.

        Raises:
            UserError: if more items share their semantic codes than a collision code can tell.
        """
        groups = group_ids(semantic_codes, self.code_num)
        health = self.health(semantic_codes, groups)
        if health.largest_group > self.code_num:
            raise UserError(
                f"code_num: {health.largest_group} items share their semantic codes, a collision "
                f"code can tell {self.code_num} apart: set collision to sinkhorn, raise code_num, "
                "e_dim or tokenizer_epochs, or give item embeddings that differ."
            )
        old = self.table[1:]
        stays = (semantic_codes == old[:, :-1]).all(dim=1)
        collision = collision_codes(groups, old[:, -1], stays)
        changed = float((~stays | (collision != old[:, -1])).float().mean())
        old[:, :-1], old[:, -1] = semantic_codes, collision  # in the table
        del groups, collision, stays  # each is as long as the catalogue
        self.build_trie()
        return replace(health, changed=changed)

    def codes_for(self, semantic_codes: torch.Tensor) -> torch.Tensor:
        """Full code tuples for further items ``[n, L - 1]`` → ``[n, L]``; no item's codes change.

        Each gets the smallest collision code that is free among the items of its semantic codes;
        where none is, one of ``C`` or above, which the caller has to refuse.
        """
        known = len(self.table) - 1
        semantic = torch.cat([self.table[1:, :-1], semantic_codes])
        old = torch.cat([self.table[1:, -1], semantic_codes.new_full((len(semantic_codes),), -1)])
        stays = torch.arange(len(old), device=old.device) < known
        collision = collision_codes(group_ids(semantic, self.code_num), old, stays)
        return torch.cat([semantic, collision.unsqueeze(1)], dim=1)[known:]

    def append(self, codes: torch.Tensor) -> None:
        """Take the full code tuples ``[n, L]`` of further items, after the present ones.

        Raises:
            ValueError: one of them has the codes of another item.
        """
        table, trie = self.table, self.trie
        self.table = torch.cat([table, codes.to(table)])
        try:
            self.build_trie()
        except ValueError:
            self.table, self.trie = table, trie
            raise

    def leave_out(self, items: torch.Tensor) -> None:
        """Keep some items ``[n]`` from being ranked."""
        self.left_out = items.to(self.table.device)
        self.build_trie()

    def health(
        self, semantic_codes: torch.Tensor, groups: torch.Tensor | None = None
    ) -> CodeHealth:
        """What a table of these semantic codes would look like ``[items - 1, L - 1]``.

        Args:
            groups: what `group_ids` gives of them, where that is known.
        """
        changed = (semantic_codes != self.table[1:, :-1]).any(dim=1)
        semantic_codes = semantic_codes.cpu()  # some accelerators have no float64
        counts = torch.stack(
            [torch.bincount(column, minlength=self.code_num) for column in semantic_codes.T]
        ).double()
        share = counts / counts.sum(dim=1, keepdim=True)
        entropy = -(share * share.clamp_min(1e-12).log()).sum(dim=1)
        groups = group_ids(semantic_codes, self.code_num) if groups is None else groups.cpu()
        sizes = torch.bincount(groups)
        return CodeHealth(
            usage=(counts > 0).double().mean(dim=1).tolist(),
            perplexity=entropy.exp().tolist(),
            collision_rate=float(sizes[sizes > 1].sum() / sizes.sum()),
            largest_group=int(sizes.max()),
            changed=float(changed.float().mean()),
        )

    def set_table(self, codes: torch.Tensor) -> None:
        """Take full code tuples ``[items - 1, L]``, from item 1 on, and build their trie."""
        self.table[1:] = codes
        self.build_trie()

    def build_trie(self) -> None:
        """Build the trie of the present table, as after loading a state."""
        items, codes = torch.arange(1, len(self.table), device=self.table.device), self.table[1:]
        if len(self.left_out):
            items = items[~torch.isin(items, self.left_out)]
            codes = self.table[items]
        self.trie = None  # there is no room for two of a large catalogue
        self.trie = Trie(codes, items, len(self.table))

    def digest(self) -> str:
        """A hash of the table, equal where tables are equal."""
        return hashlib.sha256(self.table.cpu().numpy().tobytes()).hexdigest()[:16]


def group_ids(semantic_codes: torch.Tensor, code_num: int) -> torch.Tensor:
    """A number per row ``[N, Q]`` → ``[N]``, equal where all codes are equal."""
    key = semantic_codes.new_zeros(len(semantic_codes))
    for column in semantic_codes.T:
        key = key * code_num + column
    return torch.unique(key, return_inverse=True)[1]


def collision_codes(groups: torch.Tensor, old: torch.Tensor, stays: torch.Tensor) -> torch.Tensor:
    """Number the members of each group, keeping old numbers where they are still free.

    Of items with the same old number, one that was in the group before keeps it, else the first
    by id; the others take the smallest free numbers of their group in item order. All is done
    with sorts, at any number of items.

    Args:
        groups: group of each item ``[N]``.
        old: previous collision codes ``[N]``, -1 for none.
        stays: which items were in their group before, bool ``[N]``.

    Returns:
        ``[N]``, unique within each group.
    """
    if not bool((old >= 0).any()):  # there are no numbers to keep
        order = torch.sort(groups, stable=True).indices
        codes = torch.empty_like(groups)
        codes[order] = rank_within(groups[order])
        return codes
    wish = old.clamp_min(-1)
    base = max(int(torch.bincount(groups).max()), int(wish.max()) + 1) + 1
    order = torch.sort((groups * base + wish) * 2 + ~stays, stable=True).indices
    sorted_groups, sorted_wish = groups[order], wish[order]
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = (sorted_groups[1:] != sorted_groups[:-1]) | (sorted_wish[1:] != sorted_wish[:-1])
    keeps = torch.zeros_like(first)
    keeps[order] = first & (sorted_wish >= 0)
    del sorted_groups, sorted_wish, first  # each is as long as the catalogue

    # The r-th free number of a group is r plus the kept numbers that have at most r free below.
    kept = order[keeps[order]]  # ascending in (group, number)
    del order
    kept_rank = rank_within(groups[kept])
    free_below = groups[kept] * base + wish[kept] - kept_rank
    rest = torch.nonzero(~keeps).squeeze(1)
    rest = rest[torch.sort(groups[rest], stable=True).indices]
    rank, least = rank_within(groups[rest]), groups[rest] * base
    taken = torch.searchsorted(free_below, least + rank, right=True)
    taken -= torch.searchsorted(free_below, least)
    wish[rest] = rank.add_(taken)
    return wish


def rank_within(sorted_groups: torch.Tensor) -> torch.Tensor:
    """0, 1, 2, ... within each run of equal values of a sorted ``[N]``."""
    position = torch.arange(len(sorted_groups), device=sorted_groups.device)
    return position - torch.searchsorted(sorted_groups, sorted_groups)

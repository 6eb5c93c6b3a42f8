"""The trie of valid code tuples, as flat tensors.

A node of depth ``l`` is a distinct prefix of ``l`` codes, numbered in lexicographic order, so the
children of a node are a contiguous range one level down. Depth ``L`` nodes are the items. Memory
grows with the number of items, not with the codebook size; what is not used as an index is int32.
"""

from typing import NamedTuple

import torch


class Children(NamedTuple):
    """Children of some nodes, ``W`` being the widest branching of their level.

    Attributes:
        codes: code of each child ``[..., W]``, 0 where there is none.
        nodes: number of each child one level down ``[..., W]``, 0 where there is none.
        exists: ``[..., W]``.
    """

    codes: torch.Tensor
    nodes: torch.Tensor
    exists: torch.Tensor


class Trie:
    """Built from unique code tuples.

    Args:
        codes: ``[N, L]`` code tuples.
        items: the item id of each tuple ``[N]``.
        n_items: ids there are, that of the padding item included; by default up to the highest.

    Raises:
        ValueError: if a tuple occurs twice.
    """

    def __init__(self, codes: torch.Tensor, items: torch.Tensor, n_items: int | None = None):
        self.depth = codes.shape[1]
        order = _lexicographic(codes)
        codes = codes[order]
        self.items = items[order]  # [N], the leaves
        self.n_items = n_items or int(items.max()) + 1
        self.leaf_of = items.new_full((self.n_items,), -1)  # of each item id; -1: it has none
        self.leaf_of[self.items] = torch.arange(len(items), device=items.device)
        self.codes = codes  # [N, L], sorted
        self.starts: list[torch.Tensor] = []  # per level: first child of each node, and an end
        self.child_codes: list[torch.Tensor] = []
        self.widths: list[int] = []
        self.node_counts = [1]  # per depth
        new = torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
        new[:1] = True  # rows that begin a node; at the root, one
        self.nodes = [new.cumsum(0, dtype=torch.int32) - 1]  # per depth: the node of each row [N]
        for level in range(self.depth):
            parents = torch.nonzero(new).squeeze(1)
            new = new.clone()
            new[1:] |= codes[1:, level] != codes[:-1, level]
            node = new.cumsum(0, dtype=torch.int32) - 1
            self.nodes.append(node)
            end = node[-1:] + 1
            self.starts.append(torch.cat([node[parents], end]))
            last = level == self.depth - 1  # all rows must begin a node there
            self.child_codes.append(codes[:, level] if last else codes[new, level])
            self.widths.append(int(self.starts[-1].diff().max()))
            self.node_counts.append(len(self.child_codes[-1]))
        if not bool(new.all()):
            raise ValueError("code tuples must be unique: an item would be unreachable.")

    def __len__(self) -> int:
        return len(self.items)

    def children(self, level: int, nodes: torch.Tensor) -> Children:
        """Children of depth-``level`` nodes ``[...]``."""
        start, end = self.starts[level][nodes], self.starts[level][nodes + 1]
        child = start.unsqueeze(-1) + torch.arange(self.widths[level], device=nodes.device)
        exists = child < end.unsqueeze(-1)
        child = child.masked_fill(~exists, 0)
        codes = self.child_codes[level][child].masked_fill(~exists, 0)
        return Children(codes, child, exists)


def _lexicographic(codes: torch.Tensor) -> torch.Tensor:
    """The order of code tuples ``[N, L]``, of equal ones as they come ``[N]``."""
    base = int(codes.max()) + 1 if len(codes) else 1
    if base ** codes.shape[1] < 2**63:  # a tuple is one number then
        key = codes[:, 0].clone()
        for level in range(1, codes.shape[1]):
            key.mul_(base).add_(codes[:, level])
        return torch.sort(key, stable=True).indices
    order = torch.arange(len(codes), device=codes.device)
    for level in reversed(range(codes.shape[1])):  # stable sorts
        order = order[torch.sort(codes[order, level], stable=True).indices]
    return order

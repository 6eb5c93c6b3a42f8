"""Code table, collision codes and trie against references in plain Python."""

import random
import time
from collections import defaultdict

import pytest
import torch

from recbole_etegrec.errors import UserError
from recbole_etegrec.tokenizer import ItemCodes, Trie, default_code_num
from recbole_etegrec.tokenizer.item_codes import collision_codes, group_ids


def slow_collision_codes(groups: list[int], old: list[int], stays: list[bool]) -> list[int]:
    """Old codes go to those that stay, then to newcomers; then the smallest free, in item order."""
    taken, codes = defaultdict(set), [None] * len(groups)
    for item in sorted(range(len(groups)), key=lambda item: not stays[item]):
        group, code = groups[item], old[item]
        if code >= 0 and code not in taken[group]:
            taken[group].add(code)
            codes[item] = code
    for item, group in enumerate(groups):
        if codes[item] is None:
            codes[item] = next(c for c in range(len(groups)) if c not in taken[group])
            taken[group].add(codes[item])
    return codes


@pytest.mark.parametrize(
    ("items", "code_length", "codes"),
    [
        (1, 4, 16),
        (319, 4, 16),
        (320, 4, 32),
        (1682, 4, 128),
        (2559, 4, 128),
        (2560, 4, 256),
        (12_101, 4, 256),
        (18_357, 4, 256),
        (1_000_000, 4, 256),
        (1682, 3, 128),
        (1682, 2, 256),
    ],
)
def test_number_of_codes_is_a_power_of_two_that_follows_the_items(items, code_length, codes):
    assert default_code_num(items, code_length) == codes


def test_collision_codes_number_each_group_when_there_is_no_former_table():
    groups = torch.tensor([2, 0, 2, 2, 1, 0])
    old = torch.full((6,), -1)
    stays = torch.zeros(6, dtype=torch.bool)
    assert collision_codes(groups, old, stays).tolist() == [0, 0, 1, 2, 0, 1]


def test_collision_codes_keep_old_numbers_when_they_are_free():
    groups = torch.tensor([0, 0, 0, 0, 1])
    old = torch.tensor([3, 1, 1, -1, 7])
    stays = torch.ones(5, dtype=torch.bool)
    assert collision_codes(groups, old, stays).tolist() == [3, 1, 0, 2, 7]
    stays[1] = False  # the second item has come from another group
    assert collision_codes(groups, old, stays).tolist() == [3, 0, 1, 2, 7]


def test_collision_codes_equal_the_slow_reference_when_groups_are_random():
    chance = random.Random(0)
    for _ in range(600):
        count = chance.randint(1, 40)
        groups = [chance.randrange(chance.randint(1, 12)) for _ in range(count)]
        groups = torch.unique(torch.tensor(groups), return_inverse=True)[1].tolist()
        old = [chance.randint(-1, chance.choice([0, 2, 9, 60])) for _ in range(count)]
        stays = [chance.random() < 0.5 for _ in range(count)]
        arguments = [torch.tensor(column) for column in (groups, old, stays)]
        found = collision_codes(*arguments).tolist()
        assert found == slow_collision_codes(groups, old, stays), (groups, old, stays)


def test_group_ids_are_equal_exactly_where_rows_are_equal():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, (60, 3), generator=generator)
    same = (rows[:, None] == rows[None]).all(dim=-1)
    groups = group_ids(rows, 3)
    assert torch.equal(groups[:, None] == groups[None], same)


def small_table(n_items: int, code_num: int = 8) -> ItemCodes:
    return ItemCodes(n_items=n_items + 1, code_length=4, code_num=code_num)


def test_rebuild_gives_unique_tuples_when_semantic_codes_collide():
    codes = small_table(30)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        semantic = torch.randint(3, (30, 3), generator=generator)
        codes.rebuild(semantic)
        assert torch.equal(codes.table[1:, :3], semantic)
        assert len(codes.table[1:].unique(dim=0)) == 30
        assert codes.table[1:].min() >= 0
        assert codes.table[1:].max() < 8
        assert len(codes.trie) == 30


def test_rebuild_keeps_collision_codes_when_groups_stay():
    codes = small_table(6)
    semantic = torch.tensor([[1, 1, 1]] * 3 + [[2, 2, 2]] * 3)
    assert codes.rebuild(semantic).changed == 1.0
    assert codes.table[1:, 3].tolist() == [0, 1, 2, 0, 1, 2]
    semantic[5] = semantic[0]  # item 6 leaves its group for the other, where 2 is taken
    health = codes.rebuild(semantic)
    assert codes.table[1:, 3].tolist() == [0, 1, 2, 0, 1, 3]
    assert health.changed == pytest.approx(1 / 6)
    assert codes.rebuild(semantic).changed == 0.0


def test_health_counts_use_and_collisions_when_worked_out_by_hand():
    codes = small_table(4, code_num=4)
    semantic = torch.tensor([[0, 0, 3], [0, 0, 3], [1, 0, 3], [2, 0, 0]])
    health = codes.rebuild(semantic)
    assert health.usage == [0.75, 0.25, 0.5]
    # exp(entropy) of 1/2 1/4 1/4, of 1, and of 3/4 1/4.
    assert health.perplexity == pytest.approx([2**1.5, 1.0, 4 / 3**0.75], abs=1e-6)
    assert health.collision_rate == 0.5
    assert health.largest_group == 2


def test_rebuild_refuses_when_a_group_exceeds_the_codebook():
    codes = small_table(9)
    full = torch.zeros(9, 3, dtype=torch.long)
    full[8, 2] = 1
    codes.rebuild(full)  # a group of 8 fits
    before = codes.table.clone()
    with pytest.raises(UserError, match=r"9 items .* can tell 8 apart: set collision to sinkhorn"):
        codes.rebuild(torch.zeros(9, 3, dtype=torch.long))
    assert torch.equal(codes.table, before)


def test_item_codes_are_zero_for_padding_when_looked_up():
    codes = small_table(3)
    codes.rebuild(torch.tensor([[1, 2, 3], [4, 5, 6], [7, 7, 7]]))
    items = torch.tensor([[2, 0], [3, 1]])
    expected = [[[4, 5, 6, 0], [0, 0, 0, 0]], [[7, 7, 7, 0], [1, 2, 3, 0]]]
    assert codes(items).tolist() == expected


def test_item_codes_follow_their_state_when_it_is_loaded():
    first, second = small_table(20), small_table(20)
    generator = torch.Generator().manual_seed(0)
    first.rebuild(torch.randint(3, (20, 3), generator=generator))
    second.rebuild(torch.randint(3, (20, 3), generator=generator))
    assert first.digest() != second.digest()
    second.load_state_dict(first.state_dict())
    second.build_trie()
    assert first.digest() == second.digest()
    assert torch.equal(first.trie.codes, second.trie.codes)
    assert torch.equal(first.trie.items, second.trie.items)


def walk(trie: Trie) -> dict[tuple[int, ...], tuple[int, int]]:
    """All prefixes that `children` leads to, with depth and node number."""
    found, frontier = {}, [((), 0)]
    for level in range(trie.depth):
        further = []
        nodes = torch.tensor([node for _, node in frontier])
        children = trie.children(level, nodes)
        for row, (prefix, _) in enumerate(frontier):
            columns = [column[row].tolist() for column in children]
            for code, node, exists in zip(*columns, strict=True):
                if exists:
                    assert prefix + (code,) not in found
                    found[prefix + (code,)] = (level + 1, node)
                    further.append((prefix + (code,), node))
                else:
                    assert (code, node) == (0, 0)
        frontier = further
    return found


@pytest.mark.parametrize(
    ("items", "length", "used"), [(1, 4, 5), (30, 4, 3), (60, 2, 9), (8, 1, 8)]
)
def test_trie_leads_to_exactly_the_items_when_compared_with_a_dict(items, length, used):
    generator = torch.Generator().manual_seed(items)
    every = torch.cartesian_prod(*[torch.arange(used)] * length).view(-1, length)
    tuples = every[torch.randperm(len(every), generator=generator)[:items]]
    ids = torch.randperm(items, generator=generator) + 1
    trie = Trie(tuples, ids)
    reference = {
        tuple(row[:depth]): depth for row in tuples.tolist() for depth in range(1, length + 1)
    }
    found = walk(trie)
    assert {prefix: depth for prefix, (depth, _) in found.items()} == reference
    for row, item in zip(tuples.tolist(), ids.tolist(), strict=True):
        leaf = found[tuple(row)][1]
        assert trie.items[leaf] == item
        assert trie.codes[leaf].tolist() == row
        for depth in range(1, length + 1):
            assert trie.nodes[depth][leaf] == found[tuple(row[:depth])][1]
    counts = [sum(depth == d for depth in reference.values()) for d in range(1, length + 1)]
    assert trie.node_counts == [1, *counts]


def test_trie_refuses_when_a_tuple_occurs_twice():
    tuples = torch.tensor([[1, 2], [3, 4], [1, 2]])
    with pytest.raises(ValueError, match="unique"):
        Trie(tuples, torch.arange(1, 4))


def test_trie_is_built_in_seconds_when_items_are_many():
    generator = torch.Generator().manual_seed(0)
    tuples = torch.randint(256, (100_000, 4), generator=generator).unique(dim=0)
    tuples = tuples[torch.randperm(len(tuples), generator=generator)]
    start = time.perf_counter()
    trie = Trie(tuples, torch.arange(1, len(tuples) + 1))
    assert time.perf_counter() - start < 5
    leaves = trie.items - 1
    assert torch.equal(trie.codes, tuples[leaves])
    # A random sample of items is reached code by code.
    for leaf in torch.randint(len(tuples), (50,), generator=generator).tolist():
        node = torch.tensor(0)
        for level, code in enumerate(trie.codes[leaf].tolist()):
            children = trie.children(level, node)
            (node,) = children.nodes[children.exists & (children.codes == code)]
        assert node == leaf


def test_trie_is_in_lexicographic_order_when_tuples_are_too_long_for_one_number():
    generator = torch.Generator().manual_seed(0)
    tuples = torch.randint(3, (200, 6), generator=generator).unique(dim=0)
    tuples = tuples[torch.randperm(len(tuples), generator=generator)]
    short = Trie(tuples, torch.arange(len(tuples)))
    long = Trie(tuples * 10**5, torch.arange(len(tuples)))
    assert torch.equal(short.items, long.items)
    assert short.codes.tolist() == sorted(tuples.tolist())

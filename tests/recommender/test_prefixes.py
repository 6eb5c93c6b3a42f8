"""Paths that share prefixes, scored once for all that share them."""

import torch

from recbole_etegrec.decoding import code_log_probs, score_items
from recbole_etegrec.recommender.prefixes import prefix_levels, seen_by
from tests.helpers import small_recommender


def test_levels_hold_each_prefix_once_and_its_paths():
    codes = torch.tensor([[[3, 1], [0, 1], [3, 2], [3, 1]], [[5, 5], [5, 6], [5, 7], [5, 5]]])
    first, second = prefix_levels(codes, code_num=8)
    assert first.codes.tolist() == [[0, 3], [5, 5]]  # the second row has one, which stands in
    assert first.of.tolist() == [[1, 0, 1, 1], [0, 0, 0, 0]]
    assert second.codes.tolist() == [[1, 1, 2], [5, 6, 7]]
    assert second.of.tolist() == [[1, 0, 2, 1], [0, 1, 2, 0]]
    sees = seen_by([first, second]).int()
    assert sees[0].tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 1, 0, 0, 1],
    ]


def test_scores_are_those_of_paths_alone_when_many_share_prefixes():
    for length in (1, 2, 4):
        recommender = small_recommender(code_length=length)
        generator = torch.Generator().manual_seed(length)
        history = torch.randint(0, 8, (3, 5, length), generator=generator)
        paths = torch.randint(0, 3, (3, 20, length), generator=generator)
        with torch.no_grad():
            encoded = recommender.encode_history(history, torch.ones(3, 5, dtype=torch.bool))
            keys = encoded.cache.get_seq_length()
            fast = score_items(recommender, encoded, paths)
            assert encoded.cache.get_seq_length() == keys
            slow = code_log_probs(recommender, encoded, paths)
        slow = slow.gather(-1, paths.unsqueeze(-1)).sum(dim=(2, 3))
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)

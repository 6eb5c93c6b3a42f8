"""Items of a trie that are drawn without replacement."""

import torch

from recbole_etegrec.decoding import ExactScores, Ranking, beam_search, score_codes
from recbole_etegrec.decoding.sampling import TrieSampler, row_seeds
from tests.helpers import small_item_codes, small_recommender

ITEMS, DRAWS = 8, 4000


def drawn(temperature: float, beams: int, seed: int = 0, rows: int = DRAWS) -> Ranking:
    """What is drawn after one history, again and again."""
    codes, recommender = small_item_codes(n_items=ITEMS, used=2), small_recommender()
    history = codes(torch.tensor([[3, 5]]).expand(rows, -1))
    with torch.no_grad():
        encoded = recommender.encode_history(history, torch.ones(rows, 2, dtype=torch.bool))
    seeds = row_seeds(torch.arange(1, rows + 1).unsqueeze(1), seed)
    return beam_search(
        recommender, codes.trie, encoded, beams, sampler=TrieSampler(temperature, seeds)
    )


def expected(temperature: float) -> torch.Tensor:
    """Probabilities of items, of children of each node among these ``[ITEMS]``."""
    codes, recommender = small_item_codes(n_items=ITEMS, used=2), small_recommender()
    with torch.no_grad():
        history = recommender.encode_history(
            codes(torch.tensor([[3, 5]])), torch.ones(1, 2, dtype=torch.bool)
        )
        table = codes.table[1:].unsqueeze(0)
        each = score_codes(recommender, history, table)[0] / temperature  # [N, L]
    total = torch.zeros(ITEMS)
    for level in range(table.shape[2]):
        prefix = [tuple(row[:level].tolist()) for row in table[0]]
        child = [tuple(row[: level + 1].tolist()) for row in table[0]]
        for item in range(ITEMS):
            siblings = {c: each[n, level] for n, c in enumerate(child) if prefix[n] == prefix[item]}
            total[item] += each[item, level] - torch.stack(list(siblings.values())).logsumexp(0)
    return total.exp()


def test_first_draw_has_the_probabilities_of_the_trie():
    for temperature in (1.0, 3.0):
        items = drawn(temperature, beams=1).items[:, 0]
        found = torch.bincount(items, minlength=ITEMS + 1)[1:] / DRAWS
        probabilities = expected(temperature)
        torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))
        bound = 4 * (probabilities * (1 - probabilities) / DRAWS).sqrt() + 1e-3
        assert ((found - probabilities).abs() < bound).all()


def test_items_are_drawn_once_each_and_come_in_the_order_of_their_scores():
    ranking = drawn(1.0, beams=4, rows=50)
    assert all(len(set(row)) == 4 for row in ranking.items.tolist())
    assert (ranking.scores.diff(dim=1) <= 0).all()
    whole = drawn(1.0, beams=ITEMS, rows=3).items
    assert whole.sort(dim=1).values.tolist() == [list(range(1, ITEMS + 1))] * 3


def test_draws_of_a_row_follow_from_its_history_and_the_seed_alone():
    many, few = drawn(2.0, beams=3, rows=40).items, drawn(2.0, beams=3, rows=7).items
    assert torch.equal(many[:7], few)
    assert not torch.equal(many, drawn(2.0, beams=3, rows=40, seed=1).items)


def test_scores_are_those_of_the_exact_ranking_whatever_was_drawn():
    codes, recommender = small_item_codes(n_items=ITEMS, used=2), small_recommender()
    ranking = drawn(1.0, beams=3, rows=2)
    with torch.no_grad():
        history = recommender.encode_history(
            codes(torch.tensor([[3, 5]])), torch.ones(1, 2, dtype=torch.bool)
        )
        scores = ExactScores(recommender, codes.trie)(history)[0]
    torch.testing.assert_close(ranking.scores, scores[ranking.items], atol=1e-5, rtol=0)

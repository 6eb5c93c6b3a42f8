"""Beam search and exact ranking against decoders that re-run everything."""

import pytest
import torch

from recbole_etegrec.decoding import ExactScores, beam_search, score_items, scoring
from recbole_etegrec.recommender import BACKBONES, EncodedHistory, Recommender
from recbole_etegrec.recommender.backbone import cached_tensors
from recbole_etegrec.tokenizer import ItemCodes
from tests.helpers import small_item_codes, small_recommender

N_ITEMS = 40
LENGTHS = (1, 3, 6)
CLOSE = {"atol": 1e-5, "rtol": 0}


def setting(
    backbone: str, code_length: int = 4
) -> tuple[Recommender, ItemCodes, list[torch.Tensor]]:
    """A recommender, codes of 40 items, and the histories of three users."""
    used = {2: 8, 3: 4, 4: 3}[code_length]
    codes = small_item_codes(n_items=N_ITEMS, code_length=code_length, code_num=12, used=used)
    generator = torch.Generator().manual_seed(1)
    items = [torch.randint(1, N_ITEMS + 1, (length,), generator=generator) for length in LENGTHS]
    return small_recommender(backbone, code_length=code_length, code_num=12), codes, items


def encode(recommender: Recommender, codes: ItemCodes, items: list[torch.Tensor]) -> EncodedHistory:
    padded = torch.zeros(len(items), max(LENGTHS) + 1, dtype=torch.long)
    for row, history in enumerate(items):
        padded[row, : len(history)] = history
    with torch.no_grad():
        return recommender.encode_history(codes(padded), padded > 0)


def slow_log_probs(
    recommender: Recommender, history: torch.Tensor, prefix: tuple[int, ...]
) -> torch.Tensor:
    """Of the code after `prefix`, the whole history run anew: ``[C]``."""
    target = torch.zeros_like(history[:1])
    target[0, : len(prefix)] = torch.tensor(prefix)  # what comes after is not seen
    sequence = torch.cat([history, target])[None]
    logits = recommender(sequence, torch.tensor([len(history) - 1])).logits
    return logits[0, len(prefix)].log_softmax(-1)


@torch.no_grad()
def slow_beams(
    recommender: Recommender, codes: ItemCodes, history: torch.Tensor, width: int
) -> list[tuple[int, float]]:
    """Items and scores of a beam search without cache, trie or batches."""
    item_of = {tuple(row): item for item, row in enumerate(codes.table[1:].tolist(), 1)}
    length = codes.table.shape[1]
    beams = [((), 0.0)]
    for level in range(length):
        allowed = {row[: level + 1] for row in item_of}
        grown = []
        for prefix, score in beams:
            log_probs = slow_log_probs(recommender, codes(history), prefix)
            for code, value in enumerate(log_probs.tolist()):
                if (*prefix, code) in allowed:
                    grown.append(((*prefix, code), score + value))
        beams = sorted(grown, key=lambda beam: -beam[1])[:width]
    return [(item_of[prefix], score) for prefix, score in beams]


@torch.no_grad()
def brute_force(recommender: Recommender, codes: ItemCodes, history: torch.Tensor) -> torch.Tensor:
    """``log p`` of every item, each put after the history and teacher-forced: ``[N]``."""
    scores = []
    for item in range(1, N_ITEMS + 1):
        sequence = codes(torch.cat([history, torch.tensor([item])]))[None]
        logits = recommender(sequence, torch.tensor([len(history) - 1])).logits
        log_probs = logits.log_softmax(-1)[0]
        target = codes(torch.tensor(item))
        scores.append(sum(log_probs[level, code] for level, code in enumerate(target)))
    return torch.stack(scores)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("width", [1, 2, 5, 12])
def test_beam_search_equals_an_uncached_search_when_narrow(backbone, width):
    recommender, codes, items = setting(backbone)
    ranking = beam_search(recommender, codes.trie, encode(recommender, codes, items), width)
    for row, history in enumerate(items):
        expected, scores = zip(*slow_beams(recommender, codes, history, width), strict=True)
        assert ranking.items[row].tolist() == list(expected)
        torch.testing.assert_close(ranking.scores[row], torch.tensor(scores), **CLOSE)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("code_length", [2, 3, 4])
def test_exact_ranking_equals_teacher_forcing_when_every_item_is_tried(backbone, code_length):
    recommender, codes, items = setting(backbone, code_length)
    found = ExactScores(recommender, codes.trie)(encode(recommender, codes, items))
    assert found.shape == (3, N_ITEMS + 1)
    assert torch.isneginf(found[:, 0]).all()
    for row, history in enumerate(items):
        expected = brute_force(recommender, codes, history)
        torch.testing.assert_close(found[row, 1:], expected, **CLOSE)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("code_length", [2, 3, 4])
@pytest.mark.parametrize("width", [N_ITEMS, N_ITEMS + 25])
def test_beam_search_is_the_exact_ranking_when_it_holds_the_catalogue(backbone, code_length, width):
    recommender, codes, items = setting(backbone, code_length)
    ranking = beam_search(recommender, codes.trie, encode(recommender, codes, items), width)
    exact = ExactScores(recommender, codes.trie)(encode(recommender, codes, items))
    scores, order = exact[:, 1:].sort(dim=-1, descending=True)
    assert torch.equal(ranking.items, order + 1)
    torch.testing.assert_close(ranking.scores, scores, **CLOSE)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("width", [1, 3, 7, 20, 39])
@pytest.mark.parametrize("code_length", [2, 4])
def test_beam_search_gives_items_each_once_and_in_order_when_not_exact(
    backbone, width, code_length
):
    recommender, codes, items = setting(backbone, code_length)
    ranking = beam_search(recommender, codes.trie, encode(recommender, codes, items), width)
    assert ranking.items.shape == ranking.scores.shape == (3, width)
    exact = ExactScores(recommender, codes.trie)(encode(recommender, codes, items))
    torch.testing.assert_close(ranking.scores, exact.gather(1, ranking.items), **CLOSE)
    assert (ranking.scores.diff(dim=1) <= 0).all()
    for row in ranking.items.tolist():
        assert len(set(row)) == width
        assert set(row) <= set(range(1, N_ITEMS + 1))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("chunk_items", [1, 3, 7, 39, 40])
def test_exact_ranking_is_the_same_when_cut_into_chunks(backbone, chunk_items):
    recommender, codes, items = setting(backbone)
    history = encode(recommender, codes, items)
    whole = ExactScores(recommender, codes.trie)(history)
    chunked = ExactScores(recommender, codes.trie, chunk_items)(history)
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("code_length", [2, 4])
@pytest.mark.parametrize("tokens", [1, 80, 3072])  # one user at a time, two, all
def test_score_items_equals_exact_ranking_when_candidates_are_many(
    backbone, code_length, tokens, monkeypatch
):
    monkeypatch.setitem(scoring._TOKENS, "cpu", tokens)
    recommender, codes, items = setting(backbone, code_length)
    generator = torch.Generator().manual_seed(2)
    candidates = torch.randint(1, N_ITEMS + 1, (3, 9), generator=generator)
    history = encode(recommender, codes, items)
    found = score_items(recommender, history, codes(candidates))
    exact = ExactScores(recommender, codes.trie)(history)
    torch.testing.assert_close(found, exact.gather(1, candidates), **CLOSE)
    again = score_items(recommender, history, codes(candidates))
    assert torch.equal(found, again)  # the history is as it was


def cache_of(history: EncodedHistory) -> list[torch.Tensor]:
    return [part.clone() for part in cached_tensors(history.cache)]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_cache_stays_as_it_was_when_items_are_scored(backbone):
    recommender, codes, items = setting(backbone)
    history = encode(recommender, codes, items)
    before = cache_of(history)
    candidates = codes(torch.arange(1, 8).expand(3, -1))
    results = []
    for _ in range(2):
        results.append(ExactScores(recommender, codes.trie, 11)(history))
        results.append(score_items(recommender, history, candidates))
        for old, new in zip(before, cache_of(history), strict=True):
            assert torch.equal(old, new)
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_extend_keeps_branches_apart_when_they_share_a_history(backbone):
    recommender, codes, items = setting(backbone)
    history = encode(recommender, codes, items)
    paths = codes(torch.tensor([[4, 9], [9, 4], [17, 9]]))
    together = score_items(recommender, history, paths)
    alone = [score_items(recommender, history, paths[:, n : n + 1]) for n in range(2)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_ranking_is_the_same_when_a_user_is_alone_or_in_a_batch(backbone):
    recommender, codes, items = setting(backbone)
    together = encode(recommender, codes, items)
    ranking = beam_search(recommender, codes.trie, together, 10)
    for row, history in enumerate(items):
        alone = encode(recommender, codes, [history])
        single = beam_search(recommender, codes.trie, alone, 10)
        assert torch.equal(single.items[0], ranking.items[row])
        torch.testing.assert_close(single.scores[0], ranking.scores[row], **CLOSE)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("num_beams", [5, N_ITEMS])
def test_beam_reaches_no_excluded_item_when_some_are(backbone, num_beams):
    recommender, codes, items = setting(backbone)
    generator = torch.Generator().manual_seed(2)
    gone = torch.rand(len(items), N_ITEMS + 1, generator=generator) < 0.6
    gone[0, 1:] = True  # all but three items
    gone[0, [4, 9, 30]] = False
    excluded = gone.nonzero(as_tuple=True)
    excluded = tuple(index[excluded[1] > 0] for index in excluded)
    history = encode(recommender, codes, items)
    ranking = beam_search(recommender, codes.trie, history, num_beams, excluded)
    assert sorted(ranking.items[0, :3].tolist()) == [4, 9, 30]
    assert ranking.items[0, 3:].eq(0).all() and ranking.scores[0, 3:].isneginf().all()
    assert ranking.scores[1:, :5].isfinite().all()
    exact = ExactScores(recommender, codes.trie)(encode(recommender, codes, items))
    exact[excluded] = -torch.inf
    torch.testing.assert_close(exact.gather(1, ranking.items), ranking.scores, **CLOSE)
    if num_beams == N_ITEMS:
        assert torch.equal(ranking.scores.isfinite().sum(1), (~gone[:, 1:]).sum(1))
        assert ranking.scores.diff(dim=1).nan_to_num(0).le(0).all()

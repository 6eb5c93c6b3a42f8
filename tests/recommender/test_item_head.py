"""The item head alone, and as a part of a recommender."""

import pytest
import torch
from torch.nn import functional as F

from recbole_etegrec.errors import UserError
from recbole_etegrec.losses import item_loss
from recbole_etegrec.recommender import (
    Candidates,
    Recommender,
    RecommenderSpec,
    empty_recommender,
    sample_size,
)
from recbole_etegrec.recommender.item_head import joined
from recbole_etegrec.recommender.repeats import seen_before
from tests.helpers import small_config, small_item_head, small_model, small_recommender

ITEMS = 12  # the padding item included
CLOSE = {"atol": 1e-5, "rtol": 0}


def test_vectors_are_projected_content_and_a_free_vector():
    head = small_item_head(ITEMS)
    content = head._embedding
    expected = content @ head.project.weight.T + head.free
    torch.testing.assert_close(head.vectors(), expected, **CLOSE)
    items = torch.tensor([[3, 1], [0, 11]])
    torch.testing.assert_close(head.vectors(items), expected[items], **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(head.vectors(items), head.all_vectors()[items], **CLOSE)


def test_vectors_follow_what_has_been_learned_or_lent():
    head = small_item_head(ITEMS)
    first = head.all_vectors()
    assert head.all_vectors() is first
    with torch.no_grad():
        head.free += 1
    second = head.all_vectors()
    torch.testing.assert_close(second, first + 1, **CLOSE)
    assert head.train().eval().all_vectors() is not second
    head.lend(torch.zeros(ITEMS + 2, 10))
    assert torch.equal(head.all_vectors(), F.pad(head.free, (0, 0, 0, 2)))


def test_log_probabilities_are_a_softmax_over_the_items_that_were_learned():
    head = small_item_head(ITEMS)
    query = torch.randn(3, 20)
    before = head.log_probs(query)
    assert before[:, 0].isneginf().all()
    torch.testing.assert_close(before[:, 1:].exp().sum(dim=1), torch.ones(3), **CLOSE)
    later = torch.randn(2, 10)
    head.lend(torch.cat([head._embedding, later]))
    after = head.log_probs(query)
    torch.testing.assert_close(after[:, :ITEMS], before, **CLOSE)
    own = query @ head.project(later).T - query @ head.all_vectors()[1:2].T
    torch.testing.assert_close(after[:, ITEMS:], own + before[:, 1:2], **CLOSE)


def test_finished_head_scores_as_the_one_it_was():
    head = small_item_head(ITEMS)
    head.lend(torch.randn(ITEMS + 3, 10))
    query, items = torch.randn(2, 20), torch.tensor([1, ITEMS + 2])
    with torch.no_grad():
        before = head.log_probs(query), head.vectors(items)
        head.finish()
        own = {name for name in head.state_dict() if not name.startswith("decoder.")}
        assert own == {"query.weight", "enter.weight", "repeat", "table"}
        torch.testing.assert_close((head.log_probs(query), head.vectors(items)), before, **CLOSE)


def test_free_vectors_are_left_out_by_item_when_dropped_in_training():
    torch.manual_seed(0)
    head = small_item_head(400, vector_dropout=0.3).train()
    content = head.project(head._embedding)
    by_content = (head.vectors() == content).all(dim=1)
    assert 0.2 < by_content.float().mean() < 0.4
    whole = content + head.free
    assert torch.equal(head.eval().vectors(), whole)
    head.vector_dropout = 1.0
    torch.testing.assert_close(head.train().vectors(), content, **CLOSE)


def recommender_of(layers: int) -> Recommender:
    """With an item head that has an item decoder of so many layers."""
    recommender = small_recommender(head_items=ITEMS)
    recommender.item_head = small_item_head(ITEMS, decoder_layers=layers)
    return recommender


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("enters", [True, False])
def test_outputs_do_not_see_later_items(enters, layers):
    recommender = recommender_of(layers)
    if not enters:
        recommender.item_head.enter = None
    items = torch.randint(1, ITEMS, (3, 8))
    codes = torch.randint(0, 8, (3, 8, 4))
    other = items.clone()
    other[:, 5:] = other[:, 5:] % (ITEMS - 1) + 1
    index = torch.tensor([[row * 7 + t for t in range(4)] for row in range(3)]).flatten()
    candidates = Candidates(torch.arange(1, ITEMS), 1.0)
    with torch.no_grad():
        first, second = (
            recommender(codes, index, items=x, candidates=candidates) for x in (items, other)
        )
        for before, after in zip(first, second, strict=True):
            assert before is after is None or torch.equal(before, after)
        seen = index[-1:] + 3  # reads the items that have changed
        moved = [
            recommender(codes, seen, items=x, candidates=candidates).item_query
            for x in (items, other)
        ]
    moved = (moved[0] - moved[1]).abs().amax(dim=(1, 2)).gt(1e-4)
    assert moved.tolist() == [enters, True][: len(moved)]


@pytest.mark.parametrize("layers", [0, 1])
def test_whole_sequence_and_encoded_history_ask_alike(layers):
    recommender = recommender_of(layers)
    items, codes = torch.randint(1, ITEMS, (2, 6)), torch.randint(0, 8, (2, 6, 4))
    candidates = Candidates(torch.arange(1, ITEMS), 1.0)
    with torch.no_grad():
        output = recommender(codes, torch.tensor([4, 9]), items=items, candidates=candidates)
        real = torch.ones(2, 5, dtype=torch.bool)
        history = recommender.encode_history(codes[:, :-1], real, items[:, :-1])
        torch.testing.assert_close(joined(output.item_query), history.query, **CLOSE)
        short = torch.arange(5) < torch.tensor([[5], [3]])
        padded = recommender.encode_history(codes[:, :-1], short, items[:, :-1] * short)
        alone = recommender.encode_history(codes[1:, :3], short[1:, :3], items[1:, :3])
    torch.testing.assert_close(padded.query[0], history.query[0], **CLOSE)
    torch.testing.assert_close(padded.query[1:], alone.query, **CLOSE)
    head = recommender.item_head
    torch.testing.assert_close(output.item_vectors, head.vectors(), **CLOSE)
    assert torch.equal(candidates.places_of(items[:, -1]), items[:, -1])


@pytest.mark.parametrize("count", [3, 400])  # vectors are made of what is read alone, or of all
def test_vectors_are_those_of_targets_and_candidates_when_these_are_a_sample(count):
    recommender = recommender_of(1)
    head = recommender.item_head
    items, codes = torch.randint(1, ITEMS, (2, 3)), torch.randint(0, 8, (2, 3, 4))
    index, taught = torch.tensor([1, 2]), torch.randint(1, ITEMS, (2, count))
    candidates = Candidates(torch.tensor([2, 5, 7]), 0.25)
    with torch.no_grad():
        output = recommender(codes, index, items=items, candidates=candidates, taught=taught)
        targets = torch.stack([items[0, 2], items[1, 1]])
        expected = head.vectors(torch.cat([targets, candidates.ids]))
    torch.testing.assert_close(output.item_vectors, expected, **CLOSE)
    torch.testing.assert_close(output.taught_vectors, head.vectors(taught), **CLOSE)
    assert candidates.places_of(targets).tolist() == [0, 1]


def test_targets_are_told_from_a_sixth_of_the_catalogue_within_bounds():
    sizes = [sample_size(items + 1, None) for items in (1_682, 12_101, 30_000, 1_000_000)]
    assert sizes == [2048, 2048, 5000, 50_000]
    assert sample_size(12_102, 300) == 300


def test_targets_are_as_likely_in_training_as_they_are_ranked_when_items_repeat():
    torch.manual_seed(1)
    recommender = small_recommender(head_items=ITEMS)
    head = recommender.item_head
    items = torch.tensor([[3, 3, 5, 3, 5, 7], [1, 2, 4, 6, 8, 0]])  # one target is a repeat
    codes, ends = torch.randint(0, 8, (2, 6, 4)), torch.tensor([3, 3])
    candidates = Candidates(torch.arange(1, ITEMS), 1.0)
    index = torch.arange(2) * 5 + ends
    targets = items[torch.arange(2), ends + 1]
    assert seen_before(items, index).tolist() == [[3, 0, 5, 0, 0], [1, 2, 4, 6, 0]]
    with torch.no_grad():
        head.repeat.fill_(-0.2)
        output = recommender(codes, index, items=items, candidates=candidates)
        loss = item_loss(
            joined(output.item_query),
            output.item_vectors,
            targets,
            candidates.ids,
            targets,
            seen=output.item_seen,
            repeat_bonus=output.repeat_bonus,
        )
        real = torch.ones(2, 4, dtype=torch.bool)
        history = recommender.encode_history(codes[:, :4], real, items[:, :4])
        ranked = head.log_probs(history.query, history.items)
        plain = head.log_probs(history.query)
    torch.testing.assert_close(loss, -ranked[torch.arange(2), targets].sum(), **CLOSE)
    torch.testing.assert_close(ranked[:, 1:].exp().sum(dim=1), torch.ones(2), **CLOSE)
    differences = (ranked - plain)[0]
    torch.testing.assert_close(differences[3] - differences[1], torch.tensor(-2.0), **CLOSE)
    torch.testing.assert_close(differences[3], differences[5], **CLOSE)


def test_all_else_starts_as_without_a_head_when_there_is_one(tiny_data):
    without, _ = small_model(small_config(tiny_data))
    with_head, _ = small_model(small_config(tiny_data, item_head=True))
    assert without.recommender.item_head is None
    own = with_head.state_dict()
    more = own.keys() - without.state_dict().keys()
    names = {"query.weight", "enter.weight", "project.weight", "free", "repeat"}
    more = {name.removeprefix("recommender.item_head.") for name in more}
    assert {name for name in more if not name.startswith("decoder.")} == names
    for name, tensor in without.state_dict().items():
        assert torch.equal(own[name], tensor)


def test_head_is_refused_when_the_backbone_has_an_encoder(tiny_data):
    values = vars(small_model(small_config(tiny_data, model="ETEGRec"))[0].spec)
    with pytest.raises(UserError, match="item_head .True. is for decoders, and backbone .t5."):
        empty_recommender(RecommenderSpec(**{**values, "head_items": 5}), keep_buffers=True)


def test_content_alone_ranks_items_that_came_later_and_those_whose_vectors_are_dropped():
    torch.manual_seed(0)
    head = small_item_head(400, content_width=6, vector_dropout=0.3)
    embedding, content = torch.randn(402, 10), torch.randn(402, 6)
    head.lend(embedding[:400], content[:400])
    before = head.all_vectors()
    described = head.describe(content)
    own = head.project(embedding[:400]) + head.free
    torch.testing.assert_close(before, described[:400] + own, **CLOSE)
    head.lend(embedding, content)
    torch.testing.assert_close(head.all_vectors(), torch.cat([before, described[400:]]), **CLOSE)
    items = torch.tensor([3, 401])
    torch.testing.assert_close(head.vectors(items), head.all_vectors()[items], **CLOSE)
    head.lend(embedding[:400], content[:400])
    dropped = (head.train().vectors() == described[:400]).all(dim=1).float().mean()
    assert 0.2 < dropped < 0.4
    head.eval().finish()
    torch.testing.assert_close(head.all_vectors(), before, **CLOSE)

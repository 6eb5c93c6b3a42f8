"""The codes of a recommendation, one by one: how likely, and what else there was."""

import math

import pytest
import torch

from recbole_etegrec.errors import UserError
from recbole_etegrec.inference import Catalogue, explain, recommend
from tests.helpers import small_config, small_model

HISTORY = ["i4", "i5", "i7", "i8"]


@pytest.fixture(scope="module", params=["ETEGRecLlama", "ETEGRec", "TIGER"])
def model(request, tiny_data):
    """Its first codes are shared by many items."""
    return small_model(small_config(tiny_data, model=request.param, code_num=40))[0]


@pytest.fixture(scope="module")
def catalogue(model) -> Catalogue:
    tokens = [f"i{number}" for number in range(model.n_items)]
    return Catalogue(tokens, {"i7": "Seven"})


def test_explanation_sums_to_the_score_when_the_item_was_recommended(model, catalogue):
    ranking = recommend(model, catalogue, [HISTORY, ["i1"]], 12)[0]
    for found in ranking:
        explanation = explain(model, catalogue, HISTORY, found.item)
        assert (explanation.item, explanation.title) == (found.item, found.title)
        assert explanation.log_probability == pytest.approx(found.log_probability, abs=1e-5)
        values = [step.chosen.log_probability for step in explanation.steps]
        assert sum(values) == pytest.approx(explanation.log_probability, abs=1e-6)
        codes = [step.chosen.code for step in explanation.steps]
        assert codes == model.codes.table[catalogue.ids([found.item])[0]].tolist()


def test_explanation_holds_the_likeliest_siblings_when_they_are_asked_for(model, catalogue):
    few = explain(model, catalogue, HISTORY, "i7", alternatives=2)
    every = explain(model, catalogue, HISTORY, "i7", alternatives=1000)
    table = model.codes.table[1:]
    prefix = model.codes.table[catalogue.ids(["i7"])[0]]
    assert sum(len(step.alternatives) for step in every.steps) > 3
    for level, (step, whole) in enumerate(zip(few.steps, every.steps, strict=True)):
        assert step.alternatives == whole.alternatives[:2]
        values = [choice.log_probability for choice in whole.alternatives]
        assert values == sorted(values, reverse=True)
        choices = [whole.chosen, *whole.alternatives]
        assert sum(math.exp(choice.log_probability) for choice in choices) <= 1 + 1e-6
        under = (table[:, :level] == prefix[:level]).all(dim=1)
        assert {choice.code for choice in choices} == set(table[under, level].tolist())
        for choice in choices:
            assert choice.items == int((under & (table[:, level] == choice.code)).sum())
            assert len(choice.examples) == min(choice.items, 3)
    assert few.steps[-1].chosen.items == 1
    assert few.steps[-1].chosen.examples == ["Seven"]


def test_explanation_gives_every_item_its_share_when_it_is_followed_down(model, catalogue):
    """Probabilities of two items from one step are those of the two items, likewise explained."""
    item = explain(model, catalogue, HISTORY, "i7", alternatives=1000)
    level, other = next(
        (level, choice) for level, step in enumerate(item.steps) for choice in step.alternatives
    )
    table, prefix = model.codes.table, [step.chosen.code for step in item.steps[:level]]
    wanted = torch.tensor([*prefix, other.code])
    number = int((table[:, : level + 1] == wanted).all(dim=1).nonzero()[0])
    second = explain(model, catalogue, HISTORY, catalogue.tokens[number])
    assert second.steps[level].chosen.log_probability == pytest.approx(
        other.log_probability, abs=1e-5
    )


def test_explanation_reads_as_lines_when_it_is_printed(model, catalogue):
    explanation = explain(model, catalogue, HISTORY, "i7", alternatives=1)
    lines = str(explanation).splitlines()
    assert lines[0] == "item i7 Seven"
    assert lines[1] == f"log p {explanation.log_probability:.3f}"
    first = explanation.steps[0].chosen
    assert lines[4].split()[:5] == [
        "0",
        str(first.code),
        f"{math.exp(first.log_probability):.2%}",
        f"{first.log_probability:.3f}",
        str(first.items),
    ]
    assert lines[-1].endswith("Seven") or lines[-1].startswith("  or")


def test_explain_refuses_when_items_are_not_known(model, catalogue):
    for history, item, message in ((["i1"], "x", "know: x"), ([], "i1", "empty")):
        with pytest.raises(UserError, match=message):
            explain(model, catalogue, history, item)

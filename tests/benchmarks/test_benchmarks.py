"""What the speed benchmark compares gives the same results on both sides."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recbole_etegrec.recommender import Recommender
from recbole_etegrec.tokenizer import ItemCodes
from tests.benchmarks.first_design import (
    AllowedTokens,
    CodeLM,
    generate_transformers,
    generate_uncached,
    left_padded,
    padding_masked,
    prefix_loader,
)
from tests.benchmarks.flops import beam_flops
from tests.benchmarks.scale import __main__ as scale
from tests.benchmarks.scale.stages import STAGES
from tests.benchmarks.speed.measure import Stopwatch, Work, exponent
from tests.benchmarks.speed.ranking import agreement, beams_of
from tests.helpers import (
    small_config,
    small_item_codes,
    small_model,
    small_recommender,
    whole_steps,
)

CLOSE = {"atol": 1e-5, "rtol": 0}
LENGTHS = torch.tensor([1, 3, 6, 6])


@pytest.fixture
def setting() -> tuple[Recommender, ItemCodes, torch.Tensor]:
    """A recommender, codes of 40 items, and four histories padded on the right."""
    codes = small_item_codes(n_items=40, code_num=8, used=4)
    items = torch.randint(1, 41, (4, 6), generator=torch.Generator().manual_seed(1))
    return small_recommender(), codes, items * (torch.arange(6) < LENGTHS.unsqueeze(1))


@pytest.mark.parametrize("beams", [2, 5])
def test_ways_to_rank_give_the_same_items_and_scores_when_weights_are_the_same(setting, beams):
    recommender, codes, items = setting
    ours = beams_of(recommender, codes, items, beams)
    left = left_padded(items, LENGTHS)
    allowed = AllowedTokens(codes.trie, codes.code_num)
    others = (
        generate_uncached(recommender, codes, left, beams),
        generate_transformers(CodeLM.of(recommender), allowed, codes, left, beams),
    )
    for other in others:
        assert torch.equal(other.items, ours.items)
        torch.testing.assert_close(other.scores, ours.scores, **CLOSE)
        assert agreement(other, ours)["same_items"] == 1.0


def test_agreement_ends_the_benchmark_when_scores_differ(setting):
    ours = beams_of(*setting, 5)
    with pytest.raises(SystemExit, match="results differ"):
        agreement(ours._replace(scores=ours.scores + 0.01), ours)


@pytest.mark.parametrize("bucketed", [False, True])
def test_prefix_rows_have_the_loss_of_whole_sequences_when_padding_is_masked(tiny_data, bucketed):
    config = small_config(tiny_data, cut_probability=0.0, MAX_ITEM_LIST_LENGTH=80)
    model, loaders = small_model(config)
    prefixes = prefix_loader(loaders.train._dataset, config["code_length"], 0, bucketed)
    sums = []
    for loader, masked in ((loaders.train, False), (prefixes, True)):
        total, targets = 0.0, 0
        for batch in whole_steps(loader):
            way = padding_masked(model.recommender, batch.items) if masked else nullcontext()
            with torch.no_grad(), way:
                loss = model.losses(["recommendation"], batch)["recommendation"]
            total += float(loss) * batch.divisor
            targets += batch.step_targets
        sums.append((targets, total / targets))
    assert sums[0][0] == sums[1][0]
    assert sums[0][1] == pytest.approx(sums[1][1], abs=1e-5)


def test_beam_flops_are_those_torch_counts_when_nothing_is_padded(setting):
    recommender, codes, _ = setting
    items = torch.randint(1, 41, (3, 9))
    recommender.backbone.set_attn_implementation("eager")  # counted in any version of torch
    with FlopCounterMode(display=False) as counter:
        beams_of(recommender, codes, items, 4)
    a_pair, tokens, beams = 4 * 2 * 16, 9 * 4, 4  # two layers, 16 wide
    unseen = 3 * tokens * (tokens - 1) // 2  # pairs that causality hides
    own = 3 * sum(beams * level * beams for level in (1, 2, 3))  # the tree's own pairs
    expected = counter.get_total_flops() - a_pair * (unseen + own)
    assert beam_flops(recommender, [tokens] * 3, beams) == pytest.approx(expected, rel=1e-3)


def test_stopwatch_gives_seconds_a_unit_and_the_matrix_product_when_works_take_turns():
    done = []
    works = {"a": Work(lambda: done.append("a"), 2.0), "b": Work(lambda: done.append("b"))}
    found = Stopwatch("wall", 2).in_turn(works)
    assert done == ["a", "b"] * 3
    assert found.keys() == {"a", "b", "matmul"}
    assert found["matmul"].flops > 1e8


def test_exponent_is_the_power_when_time_follows_one():
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)


def test_scale_prints_a_row_for_each_measure_with_its_growth(tmp_path, capsys, monkeypatch):
    pytest.importorskip("pyarrow")
    stages = ["columns", "start", "codes"]
    arguments = ["--sizes", "0.002", "0.004", "--folder", str(tmp_path), "--stages", *stages]
    monkeypatch.setattr("sys.argv", ["scale", *arguments])
    monkeypatch.setattr(scale, "in_own_process", lambda stage, *of: STAGES[stage](*of))
    scale.main()
    rows = capsys.readouterr().out.splitlines()
    assert any(row.startswith("start: to the first batch, s") for row in rows)
    assert any(row.startswith("codes: peak GiB") for row in rows)
    assert (tmp_path / "0.004M" / "zipf" / "zipf.columns").is_dir()

"""Codes of users: what they are made of, and that all ways to read a history have them."""

import numpy as np
import pytest
import torch

from recbole_etegrec import explain, export_run, load_exported, load_run, recommend, run
from recbole_etegrec.data.sequences import Windows, cut_windows
from recbole_etegrec.errors import UserError
from recbole_etegrec.quick_start import check
from recbole_etegrec.runs.checks import check_rules
from tests.helpers import small_config, small_model, small_values, whole_steps

CLOSE = {"atol": 1e-4, "rtol": 0}
HISTORIES = [["i3"], ["i5", "i6", "i7", "i1"], ["i30", "i2"] * 40]


@pytest.fixture(scope="module")
def made(tiny_data):
    return small_model(small_config(tiny_data, user_codes=2, item_head=True, dropout=0.0))


def prefix_of(model, batch, items):
    place = torch.arange(items.shape[1])
    return model.codes.prefix(items, place < batch.known.unsqueeze(1))


def test_prefix_stays_when_any_later_item_is_another(made):
    model, loaders = made
    loaders.train.draw(1)
    later_known = 0
    for batch in whole_steps(loaders.train):
        assert torch.equal(batch.items[:, 0] > 0, batch.known > 0)
        own = prefix_of(model, batch, batch.items)
        others = batch.items.clone()
        later = torch.arange(batch.items.shape[1]) >= batch.known.unsqueeze(1)
        others[later] = torch.randint(1, 41, (int(later.sum()),))
        assert torch.equal(prefix_of(model, batch, others), own)
        index = batch.target_index // (batch.items.shape[1] - 1)
        place = batch.target_index % (batch.items.shape[1] - 1) + 1
        assert (place >= batch.known[index]).all()  # no target is among what is known
        later_known += int((batch.known > 1).sum())
    assert later_known > 20


def test_prefix_is_the_quantized_mean_of_what_is_known(made):
    model, _ = made
    items = torch.tensor([[3, 7, 9], [5, 2, 0]])
    real = torch.tensor([[True, True, False], [True, False, False]])
    means = torch.stack([model.item_embedding[[3, 7]].mean(dim=0), model.item_embedding[5]])
    codes = model.codes.users.quantizer(means).codes
    prefix = model.codes.prefix(items, real)
    assert torch.equal(prefix, codes + torch.tensor([4, 5]) * 16)
    assert len(model.codes.users.quantizer.codebooks.flatten(0, 1).unique(dim=0)) > 16


def test_second_part_of_a_cut_window_keeps_its_history_when_asked_for():
    windows = Windows(np.array([0, 10]), np.array([8, 30]), np.array([1, 20]))
    rng = np.random.default_rng(0)
    cut = cut_windows(windows, 1.0, rng, whole=True)
    assert cut.start.tolist() == [0, 10, 0, 10]
    assert (cut.supervised_from[2:] == cut.end[:2]).all()
    assert (cut.end - cut.supervised_from).sum() == 7 + 10


def test_ranking_scores_are_those_of_training_when_users_have_codes(made):
    model, loaders = made
    (rows,) = [interaction for interaction, *_ in loaders.test]
    items = torch.arange(1, 41).expand(len(rows), -1)
    scores = model.ranker.parts(model.ranker.encode(rows), items)["codes"].log_probs
    with torch.no_grad():
        for n in range(0, len(rows), 7):
            length, target = rows["item_length"][n], rows["item_id"][n]
            history = rows["item_id_list"][n, :length]
            sequence = torch.cat([history, target[None]])[None]
            prefix = model.codes.prefix(sequence, torch.arange(length + 1)[None] < length)
            output = model.recommender(
                model.codes(sequence), length[None] - 1, items=sequence, prefix=prefix
            )
            log_probs = output.logits.log_softmax(-1)[0]
            total = sum(log_probs[j, code] for j, code in enumerate(model.codes(target)))
            torch.testing.assert_close(scores[n, target - 1], total, **CLOSE)


def test_batch_of_histories_scores_as_each_alone_when_users_have_codes(made):
    model, loaders = made
    (rows,) = [interaction for interaction, *_ in loaders.test]
    together = model.full_sort_predict(rows)
    for n in (0, 20, len(rows) - 1):
        torch.testing.assert_close(
            model.full_sort_predict(rows[n : n + 1])[0], together[n], **CLOSE
        )


def test_run_with_user_codes_is_loaded_explained_and_exported_as_it_was(tiny_data, tmp_path):
    values = {"user_codes": 2, "epochs": 0, "finetune_epochs": 2, "item_head": True}
    values = small_values(tiny_data, run_dir=str(tmp_path / "run"), **values)
    outcome = run("ETEGRecLlama", "tiny", config_dict=values)
    config, model, dataset, *loaders = load_run(outcome["run_dir"])
    export_run(outcome["run_dir"], str(tmp_path / "out"))
    exported, catalogue = load_exported(tmp_path / "out", "cpu")
    for own, other in zip(
        recommend(model, dataset, HISTORIES, k=10),
        recommend(exported, catalogue, HISTORIES, k=10),
        strict=True,
    ):
        assert [row[0] for row in own] == [row[0] for row in other]
        assert np.allclose([row[2] for row in own], [row[2] for row in other], atol=1e-5)
    item, _, score = recommend(model, dataset, HISTORIES[1:2], k=1)[0][0]
    assert explain(model, dataset, HISTORIES[1], item).score == pytest.approx(score, abs=1e-4)
    with pytest.raises(UserError, match=r"format \(hf\): user_codes"):
        export_run(outcome["run_dir"], str(tmp_path / "hf"), form="hf")

    report = check("ETEGRecLlama", "tiny", config_dict=values)
    assert report.ok, report.problems
    assert "user codes" in report.cells


def test_user_codes_are_refused_when_there_is_an_encoder(tiny_data):
    with pytest.raises(UserError, match="user_codes"):
        check_rules(small_config(tiny_data, model="ETEGRec", user_codes=2))


def test_preference_asks_for_rows_of_one_target_when_users_have_codes(tiny_data):
    values = {"schedule": ["pretraining", "final", "preference"], "user_codes": 2}
    with pytest.raises(UserError, match="user_codes .* needs training_rows: prefixes"):
        check_rules(small_config(tiny_data, preference="grpo", **values))
    check_rules(small_config(tiny_data, preference="grpo", training_rows="prefixes", **values))

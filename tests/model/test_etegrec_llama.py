"""The RecBole model: losses of windows and of prefix rows, and the scores it ranks by."""

from functools import partial

import numpy as np
import pytest
import torch
from recbole.data.dataloader import TrainDataLoader
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from recbole.utils import init_seed

from recbole_etegrec.data import SequenceBatch
from recbole_etegrec.data.tasks import TASKS
from recbole_etegrec.decoding import RANKERS
from recbole_etegrec.errors import UserError
from recbole_etegrec.losses import OBJECTIVES, recommendation_loss
from recbole_etegrec.model import ETEGRecLlama
from tests.conftest import write_interactions
from tests.helpers import (
    changed_since,
    micro_batches_of,
    parameters_of,
    small_config,
    small_data,
    small_model,
    whole_steps,
)

CLOSE = {"atol": 1e-4, "rtol": 0}


def rows_to_rank(loaders) -> Interaction:
    """The test rows of all users, histories of 1 to 50 items, with the target as item."""
    (batch,) = [interaction for interaction, *_ in loaders.test]
    assert len(batch) > 50
    return batch


def losses_of(model: ETEGRecLlama, batch: SequenceBatch) -> dict[str, torch.Tensor]:
    """All losses of a batch of windows."""
    return model.losses(OBJECTIVES, batch)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("window", [50, 8])
def test_windows_equal_prefixes_when_users_are_longer_and_shorter(pooling, window, tiny_data):
    values = {"MAX_ITEM_LIST_LENGTH": window, "alignment_pooling": pooling}
    model, loaders = small_model(small_config(tiny_data, cut_probability=0.0, **values))
    train = loaders.train._dataset.inter_feat
    users, items = train["user_id"], train["item_id"]
    windows = loaders.train.whole
    loaders.train.steps = [np.array([n]) for n in range(len(windows.start))]
    checked = 0
    for batch, start, end, supervised_from in zip(
        whole_steps(loaders.train), *windows, strict=True
    ):
        assert users[start] == users[end - 1]
        with torch.no_grad():
            whole = model.recommender(model.codes(batch.items), batch.target_index)
            for row, target in enumerate(range(supervised_from, end)):
                length = target - start  # of the history, which is the user's up to the target
                assert 1 <= length <= window
                prefix = model.codes(items[start : target + 1])[None]
                alone = model.recommender(prefix, torch.tensor([length - 1]))
                for one, many in zip(alone[:3], whole[:3], strict=True):
                    torch.testing.assert_close(many[row : row + 1], one, atol=1e-5, rtol=0)
                checked += 1
    assert checked == len(items) - len(users.unique())


def prefix_rows(config) -> list[Interaction]:
    train = SequentialDataset(config).build()[0]
    return list(TrainDataLoader(config, train, None, shuffle=False))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_calculate_loss_equals_whole_sequences_when_given_recboles_prefix_rows(pooling, tiny_data):
    # One batch each, for the negatives of PSA are those of the batch.
    values = {"max_tokens": 100_000, "cut_probability": 0.0, "train_batch_size": 10_000}
    values |= {"MAX_ITEM_LIST_LENGTH": 70, "sia_weight": 0.3, "psa_weight": 0.2}
    config = small_config(tiny_data, alignment_pooling=pooling, **values)
    model, loaders = small_model(config)
    (rows,), (batch,) = prefix_rows(config), whole_steps(loaders.train)
    assert len(rows) == len(batch.targets)
    with torch.no_grad():
        losses = losses_of(model, batch)
        expected = losses["recommendation"] + 0.3 * losses["sia"] + 0.2 * losses["psa"]
        found = model.calculate_loss(rows)
    assert losses["sia"] > 0.01
    assert losses["psa"] > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_calculate_loss_is_the_mean_of_batches_when_rows_come_in_micro_batches(tiny_data):
    values = {"MAX_ITEM_LIST_LENGTH": 70, "sia_weight": 0.0, "psa_weight": 0.0}
    config = small_config(tiny_data, train_batch_size=100, max_tokens=600, **values)
    model, loaders = small_model(small_config(tiny_data, cut_probability=0.0, **values))
    total = targets = 0
    with torch.no_grad():
        for rows in prefix_rows(config):
            total += model.calculate_loss(rows).item() * len(rows)
            targets += len(rows)
        whole = [
            (losses_of(model, batch)["recommendation"].item() * batch.divisor, len(batch.targets))
            for batch in whole_steps(loaders.train)
        ]
    assert targets == sum(count for _, count in whole)
    mean = sum(loss for loss, _ in whole) / targets
    assert total / targets == pytest.approx(mean, abs=1e-5)


def test_recboles_trainer_trains_the_recommender_alone_when_it_is_used(
    tiny_data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # where RecBole's trainer writes its logs
    values = {"epochs": 1, "train_batch_size": 256, "checkpoint_dir": str(tmp_path)}
    config = small_config(tiny_data, log_wandb=False, learning_rate=0.01, **values)
    model, loaders = small_model(config)
    train = SequentialDataset(config).build()[0]
    train_data = TrainDataLoader(config, train, None, shuffle=True)
    rows = prefix_rows(config)
    before, table = parameters_of(model), model.codes.table.clone()
    with torch.no_grad():
        first = sum(model.calculate_loss(batch) for batch in rows)
    trainer = Trainer(config, model)
    score, result = trainer.fit(train_data, loaders.valid, saved=False, show_progress=False)
    assert 0 <= score <= 1
    assert set(result) == {f"{m}@{k}" for m in ("recall", "ndcg", "mrr") for k in (5, 10, 20)}
    changed = changed_since(model, before)
    assert changed == {name for name in before if not name.startswith("tokenizer.")}
    assert torch.equal(model.codes.table, table)
    with torch.no_grad():
        assert sum(model.eval().calculate_loss(batch) for batch in rows) < first


@pytest.mark.parametrize("ranking", ["beam", "exact"])
def test_scores_agree_when_predicted_recommended_and_ranked(ranking, tiny_data):
    model, loaders = small_model(small_config(tiny_data, ranking=ranking, num_beams=40))
    rows = rows_to_rank(loaders)
    full = model.full_sort_predict(rows)
    assert full.shape == (len(rows), 41)
    assert torch.isneginf(full[:, 0]).all()
    target = rows["item_id"]
    predicted = model.predict(rows)
    torch.testing.assert_close(predicted, full.gather(1, target.unsqueeze(1)).squeeze(1), **CLOSE)

    ranked = model.ranker.best(rows, 40)
    torch.testing.assert_close(ranked.scores, full.gather(1, ranked.items), **CLOSE)
    assert torch.equal(ranked.items.sort(dim=1).values, torch.arange(1, 41).expand(len(rows), -1))
    candidates = ranked.items[:, [0, 7, 39, 7]]
    scores = model.ranker.score(rows, candidates)
    torch.testing.assert_close(scores, full.gather(1, candidates), **CLOSE)


def test_predict_is_the_sum_of_teacher_forced_log_probabilities_when_scored(tiny_data):
    model, loaders = small_model(small_config(tiny_data))
    rows = rows_to_rank(loaders)
    predicted = model.predict(rows)
    with torch.no_grad():
        for n, (history, length, target) in enumerate(
            zip(rows["item_id_list"], rows["item_length"], rows["item_id"], strict=True)
        ):
            sequence = torch.cat([history[:length], target[None]])[None]
            logits = model.recommender(model.codes(sequence), length[None] - 1).logits
            log_probs = logits.log_softmax(-1)[0]
            total = sum(log_probs[j, code] for j, code in enumerate(model.codes(target)))
            torch.testing.assert_close(predicted[n], total, **CLOSE)


def test_l_rec_is_the_prediction_when_scaled_by_the_code_length(tiny_data):
    model, loaders = small_model(small_config(tiny_data))
    rows = rows_to_rank(loaders)
    length, width = rows["item_length"], rows["item_id_list"].shape[1]
    n = torch.arange(len(rows))
    items = torch.cat([rows["item_id_list"], torch.zeros(len(rows), 1, dtype=torch.long)], dim=1)
    items[n, length] = rows["item_id"]
    with torch.no_grad():
        logits = model.recommender(model.codes(items), n * width + length - 1).logits
    loss = recommendation_loss(logits, model.codes(rows["item_id"]))
    torch.testing.assert_close(-4 * loss, model.predict(rows), **CLOSE)


def test_recommend_gives_the_best_items_when_k_is_small(tiny_data):
    config = small_config(tiny_data, num_beams=40, ranking="beam")
    model, loaders = small_model(config)
    rows = rows_to_rank(loaders)
    full = model.full_sort_predict(rows)
    scores, items = full.topk(3)
    found = model.ranker.best(rows, 3)
    assert torch.equal(found.items, items)
    torch.testing.assert_close(found.scores, scores, **CLOSE)
    exact = RANKERS["exact"](model.recommender, model.codes, model.fields)
    assert torch.equal(exact.best(rows, 3).items, items)


@pytest.mark.parametrize("ranking", ["beam", "exact"])
def test_recommend_gives_the_catalogue_once_when_k_exceeds_it(ranking, tiny_data):
    model, loaders = small_model(small_config(tiny_data, ranking=ranking))
    found = model.ranker.best(rows_to_rank(loaders), 60)
    assert found.items.shape == (len(found.scores), 40)
    assert torch.equal(found.items.sort(dim=1).values[0], torch.arange(1, 41))


def test_full_sort_predict_ranks_only_beams_when_they_are_few(tiny_data):
    config = small_config(tiny_data, num_beams=20)
    model, loaders = small_model(config)
    rows = rows_to_rank(loaders)
    scores = model.full_sort_predict(rows)
    ranked = ~torch.isneginf(scores)
    assert (ranked.sum(dim=1) == 20).all()
    beams = model.ranker.best(rows, 20)
    torch.testing.assert_close(scores.gather(1, beams.items), beams.scores, **CLOSE)


def test_full_sort_predict_ignores_the_width_of_padding_when_it_grows(tiny_data):
    model, loaders = small_model(small_config(tiny_data, ranking="exact"))
    rows = rows_to_rank(loaders)
    wide = Interaction({name: rows[name] for name in rows.columns})
    padding = torch.zeros(len(rows), 13, dtype=torch.long)
    wide.update(Interaction({"item_id_list": torch.cat([rows["item_id_list"], padding], dim=1)}))
    torch.testing.assert_close(
        model.full_sort_predict(wide), model.full_sort_predict(rows), atol=1e-5, rtol=0
    )


GRADIENTS = {
    "shared": {"recommendation": ["_adapter"], "aligned": []},
    "tokenizer_only": {
        "recommendation": ["_adapter", "code_embedding.codebooks"],
        "aligned": ["code_embedding.codebooks"],
    },
}


@pytest.mark.parametrize("update", GRADIENTS)
@pytest.mark.parametrize("what", ["recommendation", "aligned"])
def test_losses_reach_every_parameter_they_should_when_differentiated(update, what, tiny_data):
    model, loaders = small_model(small_config(tiny_data, codebook_update=update))
    losses = losses_of(model, whole_steps(loaders.train)[0])
    loss = losses["recommendation"]
    if what == "aligned":
        loss = loss + losses["sia"] + losses["psa"]
    loss.backward()
    without = GRADIENTS[update][what]
    for name, parameter in model.recommender.named_parameters():
        has = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert has != any(part in name for part in without), name
    assert all(p.grad is None for p in model.tokenizer.parameters())


@pytest.mark.parametrize("name", ["sia", "psa", "quantization"])
def test_losses_reach_the_encoder_when_the_tokenizer_trains(name, tiny_data):
    model, loaders = small_model(small_config(tiny_data))
    model.tokenizer.requires_grad_(True)
    losses_of(model, whole_steps(loaders.train)[0])[name].backward()
    assert all(p.grad.abs().max() > 0 for p in model.tokenizer.encoder.parameters())
    books = model.tokenizer.quantizer.codebooks.grad
    if name == "psa":  # the reconstruction is straight-through: rows get nothing
        assert books is None
    else:
        assert (books.abs().amax(dim=(1, 2)) > 0).all()
    # The decoder is asked by PSA and by the reconstruction.
    decoder = [p.grad is not None for p in model.tokenizer.decoder.parameters()]
    assert all(decoder) if name != "sia" else not any(decoder)


def test_model_is_made_when_more_items_are_equal_than_a_collision_code_can_tell(tiny_data):
    dataset, equal = small_data(small_config(tiny_data))[0], torch.ones(41, 4)
    with pytest.raises(UserError, match="40 items .* set collision to sinkhorn"):
        ETEGRecLlama(small_config(tiny_data), dataset, equal)
    model = ETEGRecLlama(small_config(tiny_data, collision="sinkhorn"), dataset, equal)
    assert model.codes.health(model.codes.table[1:, :-1]).largest_group == 3  # 40 items, 16 codes


@pytest.mark.parametrize("name", ["sia", "psa", "quantization"])
def test_losses_reach_the_codebooks_when_there_is_no_encoder(name, tiny_data):
    model, loaders = small_model(small_config(tiny_data, tokenizer="rqkmeans"))
    model.tokenizer.requires_grad_(True)
    losses_of(model, whole_steps(loaders.train)[0])[name].backward()
    books = model.tokenizer.quantizer.codebooks.grad
    assert (books.abs().amax(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("tokenizer", ["rqvae", "rqkmeans"])
def test_semantic_codes_collide_no_more_when_they_are_spread(tokenizer, tiny_data):
    values = {"tokenizer": tokenizer, "code_num": 12, "code_length": 3}
    model, _ = small_model(small_config(tiny_data, **values, collision="sinkhorn"))
    nearest = model.tokenizer.encode(model.item_embedding[1:])
    before, after = model.codes.health(nearest), model.codes.health(model.codes.table[1:, :-1])
    assert after.largest_group == 1 < before.largest_group
    found = model.fidelity()
    assert found["nearest_collision_rate"] == before.collision_rate > after.collision_rate == 0
    # Items that are moved are coded somewhat worse.
    items = model.item_embedding[1:]
    assert found["reconstruction"] > model.tokenizer.reconstruction_error(items, nearest)
    assert 0 < found["neighbours_kept"] <= 1


def test_losses_are_the_named_ones_alone_when_some_are_asked_for(tiny_data):
    model, loaders = small_model(small_config(tiny_data, item_head=True))
    batch = whole_steps(loaders.train)[0]
    with torch.no_grad():
        together = losses_of(model, batch)
        asked_for = {"distillation", "code_distillation", "grpo", "dpo", *TASKS}  # elsewhere
        assert set(together) == set(OBJECTIVES) - asked_for
        for name, value in together.items():
            torch.testing.assert_close(model.losses([name], batch), {name: value})


@pytest.mark.parametrize(("micro_batches", "processes"), [(2, 1), (1, 2), (3, 1), (2, 2)])
def test_losses_sum_to_those_of_the_step_when_it_is_divided(micro_batches, processes, tiny_data):
    model, loaders = small_model(small_config(tiny_data, max_tokens=400))
    names = ["recommendation", "sia", "quantization"]
    assert min(len(rows) for rows in loaders.train.steps) < micro_batches * processes
    with torch.no_grad():
        ranks = micro_batches_of(loaders.train, micro_batches, processes)
        for whole, *batches in zip(whole_steps(loaders.train), *ranks, strict=True):
            shares = [model.losses(names, batch) for own in batches for batch in own]
            found = {name: sum(share[name] for share in shares) for name in names}
            expected = model.losses(names, whole)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("processes", [2, 3])
def test_losses_take_psa_negatives_from_all_processes_when_told_how(processes, tiny_data):
    model, loaders = small_model(small_config(tiny_data, max_tokens=400))
    ranks = micro_batches_of(loaders.train, 1, processes)

    def note(seen: list[torch.Tensor], own: torch.Tensor) -> torch.Tensor:
        seen.append(own)
        return own

    with torch.no_grad():
        for whole, *batches in zip(whole_steps(loaders.train), *ranks, strict=True):
            seen = []
            for (batch,) in batches:
                model.losses(["psa"], batch, logsumexp_over_processes=partial(note, seen))
            total = torch.stack(seen).logsumexp(dim=0)
            found = sum(
                model.losses(["psa"], batch, logsumexp_over_processes=lambda _, t=total: t)["psa"]
                for (batch,) in batches
            )
            expected = model.losses(["psa"], whole)["psa"]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_losses_give_every_parameter_a_finite_gradient_when_a_micro_batch_has_no_targets(tiny_data):
    model, loaders = small_model(small_config(tiny_data, max_tokens=400, cut_probability=0.0))
    model.tokenizer.requires_grad_(True)
    loaders.train.split(4)
    empty = [batch for step in loaders.train for batch in step if len(batch.targets) == 0]
    losses = losses_of(model, empty[0])
    sum(losses.values()).backward()
    assert all(losses[name] == 0 for name in ("recommendation", "sia", "psa"))
    assert losses["quantization"] > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if name.startswith("recommender."):
            assert not parameter.grad.any(), name


def test_rebuild_codes_moves_table_trie_and_codebooks_when_the_tokenizer_changed(tiny_data):
    model, loaders = small_model(small_config(tiny_data, ranking="exact"))
    rows = rows_to_rank(loaders)
    scores, table = model.full_sort_predict(rows), model.codes.table.clone()
    with torch.no_grad():
        for parameter in model.tokenizer.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    health = model.rebuild_codes()
    assert health.changed > 0.5
    expected = model.tokenizer.encode(model.item_embedding[1:])
    assert torch.equal(model.codes.table[1:, :3], expected)
    assert not torch.equal(model.codes.table, table)
    assert len(model.codes.table[1:].unique(dim=0)) == 40
    assert torch.equal(model.codes.trie.codes, model.codes(model.codes.trie.items))
    books = model.recommender.code_embedding.codebooks
    assert torch.equal(books, model.tokenizer.quantizer.codebooks)
    again = model.full_sort_predict(rows)
    assert (again[:, 1:] - scores[:, 1:]).abs().max() > 0.1
    target = rows["item_id"].unsqueeze(1)
    torch.testing.assert_close(model.predict(rows), again.gather(1, target).squeeze(1), **CLOSE)


def test_model_refuses_when_a_collision_group_exceeds_the_codebook(tmp_path):
    write_interactions(tmp_path, "same", [[(u + t) % 30 for t in range(6)] for u in range(30)])
    tokens = [f"i{n}" for n in range(30)]
    lines = [f"{token}\t{int(n == 0)} 1" for n, token in enumerate(tokens)]
    header = "itm_id:token\titm_emb:float_seq"
    (tmp_path / "v.itememb").write_text("\n".join([header, *lines]) + "\n")
    config = small_config(
        str(tmp_path), "same", item_embedding="file", item_embedding_file=f"{tmp_path}/v.itememb"
    )
    train = small_data(config)[1].train._dataset
    with pytest.raises(UserError, match="code_num: 29 items share .* can tell 16 apart"):
        ETEGRecLlama(config, train)


def test_model_is_the_same_when_built_twice_from_one_seed(tiny_data):
    config = small_config(tiny_data)
    first, second = small_model(config)[0], small_model(config)[0]
    assert not changed_since(second, parameters_of(first))
    assert first.codes.digest() == second.codes.digest()
    init_seed(7, True)
    other = ETEGRecLlama(config, small_data(config)[1].train._dataset)
    assert changed_since(other, parameters_of(first))


def test_model_takes_three_codes_an_item_when_the_code_length_is_three(tiny_data):
    model, loaders = small_model(small_config(tiny_data, code_length=3, ranking="exact"))
    rows = rows_to_rank(loaders)
    assert model.codes.table.shape == (41, 3)
    full = model.full_sort_predict(rows)
    found = full.gather(1, rows["item_id"].unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(model.predict(rows), found, **CLOSE)

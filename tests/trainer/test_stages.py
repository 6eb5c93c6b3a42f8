"""What each stage changes, and what it leaves, on a real small model."""

import math

import pytest
import torch

from recbole_etegrec.losses import OBJECTIVES
from recbole_etegrec.trainer import ETEGRecTrainer
from recbole_etegrec.trainer.checkpoint import load_model
from recbole_etegrec.trainer.schedule import Stage
from tests.helpers import changed_since, parameters_of, small_model, whole_steps
from tests.trainer.trainers import (
    BOOKS,
    METRICS,
    RECOMMENDATION,
    WEIGHTS,
    make_trainer,
    metrics_lines,
    of_module,
    ready_trainer,
    run_stages,
)

TOKENIZER_BOOKS = "tokenizer.quantizer.codebooks"


def adapters(names) -> set[str]:
    return {name for name in names if "_adapter" in name}


def changes(trainer: ETEGRecTrainer, stage: Stage) -> tuple[set[str], set[str], bool]:
    """Parameters that a stage changed, all parameters, and whether codes changed."""
    before, table = parameters_of(trainer.model), trainer.model.codes.table.clone()
    run_stages(trainer, stage)
    changed = changed_since(trainer.model, before)
    return changed, set(before), not torch.equal(trainer.model.codes.table, table)


def test_tokenizer_stage_changes_the_tokenizer_alone_when_codes_stay(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run")
    stage = Stage("alternation", "tokenizer", WEIGHTS["tokenizer"])
    changed, names, codes_changed = changes(trainer, stage)
    assert changed == of_module(names, "tokenizer")
    assert not codes_changed


def test_tokenizer_stage_also_moves_the_shared_codebooks_when_codes_are_rebuilt(
    tiny_data, tmp_path
):
    rate = {"alternation_tokenizer_learning_rate": 0.05}
    trainer = ready_trainer(tiny_data, tmp_path / "run", **rate)
    stage = Stage("alternation", "tokenizer", {"quantization": 1.0}, rebuild_codes=True)
    changed, names, codes_changed = changes(trainer, stage)
    assert changed == of_module(names, "tokenizer") | {BOOKS}
    assert codes_changed


def test_tokenizer_stage_leaves_the_rest_when_only_sia_is_weighted(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run")
    changed, names, _ = changes(trainer, Stage("alternation", "tokenizer", {"sia": 0.1}))
    tokenizer = of_module(names, "tokenizer")
    assert changed == {name for name in tokenizer if ".decoder." not in name}


@pytest.mark.parametrize("aligned", [False, True])
def test_recommender_stage_changes_no_encoder_when_codebooks_are_shared(
    aligned, tiny_data, tmp_path
):
    trainer = ready_trainer(tiny_data, tmp_path / "run", weight_decay=0.0)
    weights = WEIGHTS["recommender"] if aligned else RECOMMENDATION
    stage = Stage("alternation", "recommender", weights, share_codebooks=True)
    changed, names, codes_changed = changes(trainer, stage)
    expected = of_module(names, "recommender") - (set() if aligned else adapters(names))
    assert changed == expected | {TOKENIZER_BOOKS}
    assert not codes_changed
    model = trainer.model
    books = model.recommender.code_embedding.codebooks
    assert torch.equal(books, model.tokenizer.quantizer.codebooks)


def test_recommender_stage_leaves_the_tokenizer_when_it_alone_moves_codebooks(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run", codebook_update="tokenizer_only")
    stage = Stage("alternation", "recommender", WEIGHTS["recommender"])
    changed, names, codes_changed = changes(trainer, stage)
    assert changed == of_module(names, "recommender") - {BOOKS}
    assert not codes_changed


def test_code_tables_part_from_the_codebooks_when_they_are_separate(tiny_data, tmp_path):
    values = {"codebook_update": "separate", "alternation_tokenizer_learning_rate": 0.05}
    trainer = ready_trainer(tiny_data, tmp_path / "run", weight_decay=0.0, **values)
    model = trainer.model
    tables, books = (model.get_parameter(name) for name in (BOOKS, TOKENIZER_BOOKS))
    assert torch.equal(tables, books)  # they start from them
    changed, names, codes_changed = changes(
        trainer, Stage("alternation", "recommender", WEIGHTS["recommender"])
    )
    assert changed == of_module(names, "recommender")
    assert not codes_changed
    tokenizer = Stage("alternation", "tokenizer", WEIGHTS["tokenizer"], rebuild_codes=True)
    changed, _, codes_changed = changes(trainer, tokenizer)
    assert changed == of_module(names, "tokenizer")
    assert codes_changed
    both = Stage("joint", "both", WEIGHTS["both"], rebuild_codes=True)
    assert changes(trainer, both)[0] == names
    assert not torch.equal(tables, books)
    codes = model.tokenizer.encode(model.item_embedding[1:])
    assert torch.equal(codes, model.codes.table[1:, :-1])


def test_codes_stay_when_no_other_is_nearer_by_more_than_the_slack(tiny_data, tmp_path):
    stage = Stage("alternation", "tokenizer", {"quantization": 1.0}, rebuild_codes=True)
    shares = []
    for slack in (0.0, 0.1, 1e9):
        values = {"alternation_tokenizer_learning_rate": 0.01, "code_slack": slack}
        trainer = ready_trainer(tiny_data, tmp_path / f"run {slack}", **values)
        model = trainer.model
        held = model.codes.table[1:, :-1].clone()
        run_stages(trainer, stage)
        shares.append(metrics_lines(trainer)[-1]["changed"])
        quantizer = model.tokenizer.quantizer
        for item, codes in enumerate(model.codes.table[1:, :-1]):
            left = model.tokenizer.encoder(model.item_embedding[item + 1]).detach()
            for book, own, before in zip(quantizer.codebooks, codes, held[item], strict=True):
                distances = (left - book).square().sum(dim=1)
                stays = distances[before] <= (1 + slack) * distances.min() + 1e-6
                assert own == (before if stays else distances.argmin())
                left = left - book[own].detach()
    assert shares[0] > shares[1] > shares[2] == 0


@pytest.mark.parametrize("update", ["shared", "separate", "tokenizer_only"])
@pytest.mark.parametrize("name", ["best", "last"])
def test_saved_tokenizer_gives_the_saved_codes_when_training_is_over(
    name, update, tiny_data, tmp_path
):
    values = {"codebook_update": update, "finetune_from": name, "epochs": 4}
    trainer, loaders = make_trainer(tiny_data, tmp_path / "run", learning_rate=0.02, **values)
    trainer.fit(loaders.train, loaders.valid)
    other = small_model(trainer.config)[0]
    load_model(other, trainer.run_dir.best)
    codes = other.tokenizer.encode(other.item_embedding[1:])
    assert torch.equal(codes, other.codes.table[1:, :-1])


def test_final_stage_leaves_the_tokenizer_when_codebooks_are_shared(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run", weight_decay=0.0)
    changed, names, codes_changed = changes(trainer, Stage("final", "recommender", RECOMMENDATION))
    assert changed == of_module(names, "recommender") - adapters(names)
    assert not codes_changed


def test_stages_change_only_their_own_when_they_alternate(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run")
    tokenizer = Stage("alternation", "tokenizer", WEIGHTS["tokenizer"])
    recommender = Stage("alternation", "recommender", WEIGHTS["recommender"], share_codebooks=True)
    for _ in range(2):  # optimizer state of one stage must not move its module in the next
        changed, names, _ = changes(trainer, tokenizer)
        assert changed == of_module(names, "tokenizer")
        changed, names, _ = changes(trainer, recommender)
        assert changed == of_module(names, "recommender") | {TOKENIZER_BOOKS}
    before = parameters_of(trainer.model.recommender)
    run_stages(trainer, recommender, tokenizer)
    assert len(changed_since(trainer.model.recommender, before)) == len(before)


def test_both_modules_learn_in_each_step_when_training_is_joint(tiny_data, tmp_path):
    rate = {"alternation_tokenizer_learning_rate": 0.05}
    trainer = ready_trainer(tiny_data, tmp_path / "run", **rate)
    changed, names, codes_changed = changes(
        trainer,
        Stage(
            "alternation",
            "both",
            WEIGHTS["both"],
            rebuild_codes=True,
        ),
    )
    assert changed == names
    assert codes_changed
    model, (line,) = trainer.model, metrics_lines(trainer)
    books = model.recommender.code_embedding.codebooks
    assert torch.equal(books, model.tokenizer.quantizer.codebooks)
    losses = [line[name] for name in OBJECTIVES if name in WEIGHTS["both"]]
    assert all(0 < loss < 100 for loss in losses)
    assert trainer.progress.rate_steps == dict.fromkeys(
        ("tokenizer", "recommender"), len(trainer.loaders["sequences"])
    )


def test_joint_step_takes_the_parts_one_after_the_other_when_it_trains_both(tiny_data, tmp_path):
    """The recommender's part meets the codebooks that the tokenizer's part has moved."""
    both = Stage("alternation", "both", WEIGHTS["both"])
    models = []
    for name in ("joint", "in_turn"):
        trainer = ready_trainer(tiny_data, tmp_path / name)
        engine = trainer.engine
        micro_batches = next(iter(trainer.loaders["sequences"]))
        if name == "joint":
            engine.step(micro_batches, both)
        else:
            for part, to in zip(both.parts, ("recommender", "tokenizer"), strict=True):
                engine.freeze_all_but(part.trains)
                engine.step(micro_batches, part)
                engine.model.copy_codebooks(to=to)
        models.append(parameters_of(engine.model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_final_phase_starts_from_the_untrained_recommender_when_it_is_from_scratch(
    tiny_data, tmp_path, monkeypatch
):
    """Also when the run is stopped in that phase, whose scores are its own."""
    values = {"schedule": ["pretraining", "alternation", "final_from_scratch"], "epochs": 4}
    trainer, loaders = make_trainer(tiny_data, tmp_path / "run", **values, **METRICS)
    model = trainer.model
    first = {k: v for k, v in parameters_of(model).items() if k.startswith("recommender.")}
    starts, run_phase = {}, trainer.run_phase

    def watched(phase):
        starts[phase.name] = parameters_of(model)
        run_phase(phase)

    def stopped(*_):
        if trainer.progress.phase == "final_from_scratch":
            raise KeyboardInterrupt
        return evaluate_as_before(*_)

    evaluate_as_before = trainer._evaluate
    monkeypatch.setattr(trainer, "run_phase", watched)
    monkeypatch.setattr(trainer, "_evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(loaders.train, loaders.valid)
    final = starts["final_from_scratch"]
    for name, value in first.items():
        assert torch.equal(final[name], value) == (name != BOOKS)
    assert torch.equal(final[BOOKS], final[TOKENIZER_BOOKS])
    assert trainer.best_valid_score == -math.inf
    assert trainer.keeper.best_description["phase"] == "alternation"

    resumed = ETEGRecTrainer(trainer.config, trainer.model, trainer.run_dir)
    scores, run_phase_of_it = [], resumed.run_phase

    def scored(phase):
        scores.append(resumed.best_valid_score)
        run_phase_of_it(phase)

    monkeypatch.setattr(resumed, "run_phase", scored)
    resumed.fit(loaders.train, loaders.valid, resume=True)
    assert scores == [-math.inf]
    assert resumed.keeper.best_description["phase"] == "final_from_scratch"


# What follows a tokenizer epoch -----------------------------------------------------------------


def test_everything_uses_the_new_codes_when_the_tokenizer_was_trained(tiny_data, tmp_path):
    values = {"alternation_tokenizer_learning_rate": 0.05, "ranking": "exact"}
    values["repeat_score"] = 0.0
    trainer = ready_trainer(tiny_data, tmp_path / "run", **values)
    model = trainer.model
    (rows,) = [interaction for interaction, *_ in trainer.valid_data]
    batch = whole_steps(trainer.loaders["sequences"])[0]
    old = model.codes(batch.items), model.full_sort_predict(rows)
    run_stages(
        trainer, Stage("alternation", "tokenizer", {"quantization": 1.0}, rebuild_codes=True)
    )
    semantic = model.tokenizer.encode(model.item_embedding[1:])
    table = model.codes.table[1:]
    assert torch.equal(table[:, :3], semantic)
    assert len(table.unique(dim=0)) == len(table)
    assert torch.equal(model.codes.trie.codes, table[model.codes.trie.items - 1])
    books = model.recommender.code_embedding.codebooks
    assert torch.equal(books, model.tokenizer.quantizer.codebooks)
    assert not torch.equal(model.codes(batch.items), old[0])

    # Evaluation ranks by teacher-forced log-probabilities of the new codes.
    scores = model.full_sort_predict(rows)
    assert (scores[:, 1:] - old[1][:, 1:]).abs().max() > 0.1
    for item in (1, 17, 40):
        forced = []
        for history, length in zip(rows["item_id_list"], rows["item_length"], strict=True):
            sequence = torch.cat([history[:length], torch.tensor([item])])[None]
            logits = model.recommender(model.codes(sequence), length[None] - 1).logits
            forced.append(logits.log_softmax(-1)[0, range(4), model.codes.table[item]].sum())
        torch.testing.assert_close(scores[:, item], torch.stack(forced), atol=1e-4, rtol=0)
    assert metrics_lines(trainer)[-1]["changed"] > 0


def test_training_batch_uses_the_new_codes_when_the_table_changed(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run")
    stage, model = Stage("alternation", "recommender", RECOMMENDATION), trainer.model
    batch = whole_steps(trainer.loaders["sequences"])[0]._replace(targets_a_step=None)
    with torch.no_grad():
        before = trainer.engine.losses(batch, stage)["recommendation"]
        swapped = model.codes.table[1:].flip(0).clone()
        model.codes.set_table(swapped)
        after = trainer.engine.losses(batch, stage)["recommendation"]
        logits = model.recommender(swapped[batch.items - 1], batch.target_index).logits
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), swapped[batch.targets - 1].flatten()
        )
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)
    assert abs(after - before) > 1e-4

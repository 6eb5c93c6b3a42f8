"""Tasks of texts in the model: mixed rows, their losses, and whole runs with them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from recbole_etegrec import add_items, export_run, load_exported, load_run, recommend, run
from recbole_etegrec.config.keys import KEYS
from recbole_etegrec.data.tasks import TASKS, tasks_of
from recbole_etegrec.data.tasks.batch import pack, task_batches
from recbole_etegrec.errors import UserError
from recbole_etegrec.inference.proposed_codes import proposed_codes, title_prompts
from recbole_etegrec.losses import OBJECTIVES
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.quick_start import check, plan
from recbole_etegrec.recommender import MixedRows
from recbole_etegrec.recommender.base_model import find_base_config, load_base_model
from recbole_etegrec.runs.checks import check_rules
from recbole_etegrec.runs.tasks import give_tasks, held_out_items, task_rows, vocabulary_of
from recbole_etegrec.trainer.schedule import SCHEDULES
from tests.benchmarks.title_codes import measure
from tests.helpers import changed_since, parameters_of, small_config, small_model, small_values
from tests.recommender.base_models import saved, saved_with_texts, smollm2

ALL = dict.fromkeys(TASKS, 0.5)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return saved_with_texts(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(texts_data) -> str:
    return texts_data


def values(base: str, **more) -> dict:
    tuned = {"base_model": base, "tuning": "lora", "lora_r": 2, "task_tokens": 300}
    return {"tasks": ALL, **tuned, "lora_dropout": 0.0, **more}


def made(data: str, base: str, **more) -> tuple[ETEGRecLlama, object]:
    config = small_config(data, **values(base, **more))
    model, loaders = small_model(config)
    give_tasks(config, loaders.train)
    return model, loaders.train


def mixed(rows, tokens: list[list[int]], asked: int) -> MixedRows:
    """Rows of text alone, padded, of which the last tokens are asked for."""
    width = max(map(len, tokens))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in tokens])
    index = [n * width + len(row) - k for n, row in enumerate(tokens) for k in range(asked, 0, -1)]
    none = torch.zeros(0, dtype=torch.long)
    return MixedRows(padded + rows, None, none, none, none.view(0, 4), torch.tensor(index))


@pytest.mark.parametrize("tied", [True, False])
def test_loss_of_texts_is_that_of_transformers(tied, data, tmp_path):
    base = saved_with_texts(tmp_path, tied=tied)
    model, _ = made(data, base)
    assert model.spec.text_head == ("tied" if tied else "own")
    tokens = [[7, 200, 31, 9, 44, 256], [3, 3, 120, 90]]
    recommender = model.recommender
    found = recommender._read_rows(mixed(recommender.code_embedding.count, tokens, 3), None)
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    for n, row in enumerate(tokens):
        labels = torch.tensor([[-100] * (len(row) - 3) + row[-3:]])
        loss = theirs(torch.tensor([row]), labels=labels).loss
        torch.testing.assert_close(found["text_nll"][3 * n : 3 * n + 3].mean(), loss, **CLOSE)


def test_dropout_leaves_texts_alone_when_training(data, base):
    model, _ = made(data, base, dropout=0.5, residual_dropout=0.0)
    rows = mixed(model.recommender.code_embedding.count, [[7, 200, 31, 9, 44, 256]], 3)
    found = [model.recommender.train(mode)._read_rows(rows, None) for mode in (False, True)]
    assert torch.equal(found[0]["text_nll"], found[1]["text_nll"])


def test_preference_asks_for_no_task_that_is_not_mixed(data, base):
    config = small_config(data, **values(base, mixed_tasks=False, item_head=True))
    (stage, *_) = SCHEDULES["preference"](config).stages
    assert not TASKS.keys() & stage.weights.keys()


@pytest.mark.parametrize("item_head", [False, True])
def test_rows_read_alike_when_padded_packed_or_alone(item_head, data, base):
    model, train = made(data, base, item_head=item_head)
    rows, length = train.tasks, model.codes.table.shape[1]
    chosen = [rows.row(n) for n in range(0, len(rows), 9)]
    packs = pack([len(row.slots) for row in chosen], 256)
    chosen = [chosen[n] for one in packs for n in one]  # in the order that they are packed in
    a_step = torch.ones(len(rows.names)).numpy()
    (packed,) = task_batches(chosen, a_step, length, 1)
    assert packed.packed
    alone = [task_batches([row], a_step, length, 1)[0] for row in chosen]
    assert not any(batch.packed for batch in alone)
    parts = {"row_logits": [], "text_nll": []}
    with torch.no_grad():
        together = model.recommender._read_rows(model.mixed_rows(packed), None)
        for batch in alone:
            one = model.recommender._read_rows(model.mixed_rows(batch), None)
            for name, values in parts.items():
                values.append(one[name])
    for name, values in parts.items():
        torch.testing.assert_close(torch.cat(values), together[name], **CLOSE)


def test_logits_of_the_main_task_do_not_depend_on_tasks_beside_it(data, base):
    model, train = made(data, base)
    (batch,) = next(iter(train))
    assert batch.tasks is not None
    with torch.no_grad():
        alone = model.read(batch)
        beside = model.read(batch, rows=model.mixed_rows(batch.tasks))
    assert torch.equal(alone.logits, beside.logits)


def test_shares_of_micro_batches_sum_to_the_losses_of_the_step(data, base):
    model, train = made(data, base, task_tokens=3000)
    names = [*TASKS, "recommendation"]
    with torch.no_grad():
        (batch,) = next(train.iterate(1))
        whole = model.losses(names, batch)
        train.split(3)
        parts = [model.losses(names, batch) for batch in next(train.iterate(1))]
    for name in names:
        assert whole[name] > 0
        torch.testing.assert_close(sum(part[name] for part in parts), whole[name], **CLOSE)


def test_what_an_epoch_asks_for_weighs_the_same_in_all_its_steps(data, base):
    model, train = made(data, base)
    config = small_config(data, **values(base))
    rows, number = train.tasks, train.tasks.names.index("codes_to_title")
    total = 0.0
    with torch.no_grad():
        for (batch,) in train:
            total += model.losses(["codes_to_title"], batch)["codes_to_title"] / len(train)
        kept = [n for step in train.task_steps.rows for n in step.tolist()]
        own = [rows.row(n) for n in kept if rows.rows.number[n] == number]
        (batch,) = task_batches(own, train.task_steps.a_step, config["code_length"], 1)
        nll = model.recommender._read_rows(model.mixed_rows(batch), None)["text_nll"]
    torch.testing.assert_close(total, nll.mean(), atol=1e-4, rtol=1e-4)


def test_tasks_are_the_objectives_of_their_names(base):
    assert TASKS.keys() <= OBJECTIVES.keys()
    assert tasks_of({"tasks": {"codes_to_title": 1, "title_to_codes": 0.0}}) == ["codes_to_title"]
    assert tasks_of({"tasks": None}) == []
    assert KEYS["tasks"].takes(ALL)


def test_table_and_head_are_there_when_a_task_needs_them_alone(data, base):
    model, _ = made(data, base, tasks={"title_to_codes": 1.0})
    assert model.spec.text_head == "none" and model.recommender.text.head is None
    frozen = {name for name in model.frozen_names if ".text." in name}
    assert frozen == {"recommender.text.table.weight"}
    model, _ = made(data, base, tasks=None)
    assert model.recommender.text is None
    model, _ = made(data, base, tuning="full")
    assert not model.frozen_names
    assert all(p.requires_grad for p in model.recommender.text.parameters())


def lines_of(run_dir: str) -> list[dict]:
    return [json.loads(line) for line in Path(run_dir, "metrics.jsonl").read_text().splitlines()]


def test_run_learns_by_tasks_first_and_then_beside_the_main_one(data, base, tmp_path):
    chosen = values(base, schedule=["pretraining", "tasks", "final"], task_epochs=2)
    chosen |= {"finetune_epochs": 2, "user_codes": 2, "item_head": True, "learning_rate": 0.01}
    chosen |= {"task_tokens": 4000, "task_holdout": 0.2}
    chosen = small_values(data, run_dir=str(tmp_path / "run"), **chosen)
    outcome = run("ETEGRecLlama", "tiny", config_dict=chosen)
    epochs = [line for line in lines_of(outcome["run_dir"]) if line.get("trains") == "recommender"]
    assert [line["phase"] for line in epochs] == ["tasks"] * 2 + ["final"] * 2
    for name in TASKS:
        assert epochs[1][name] < epochs[0][name]
        assert name in epochs[2]
    assert "recommendation" not in epochs[0] and epochs[0]["tokens"] > 1000
    measured = measure(outcome["run_dir"], {})
    assert measured["items"] > 3 and 0 <= measured["decoder"] <= 1
    best = load_file(Path(outcome["run_dir"], "best", "model.safetensors"))
    assert not [name for name in best if ".text." in name]

    _, model, dataset, *_ = load_run(outcome["run_dir"])
    export_run(outcome["run_dir"], str(tmp_path / "out"))
    exported, catalogue = load_exported(tmp_path / "out", "cpu")
    assert exported.recommender.text is None
    own, other = (
        recommend(one, items, [["i3", "i4"]], k=10)[0]
        for one, items in ((model, dataset), (exported, catalogue))
    )
    assert [row[0] for row in own] == [row[0] for row in other]


def test_check_and_plan_hold_when_there_are_tasks(data, base):
    chosen = small_values(data, **values(base, schedule=["pretraining", "tasks", "final"]))
    report = check("ETEGRecLlama", "tiny", config_dict=chosen)
    assert report.ok, report.problems
    assert set(report.losses["tasks"]) == set(TASKS)
    assert set(report.losses["final"]) == {"recommendation", *TASKS}
    full = small_values(data, **values(base, tuning="full", warmup_steps=0))
    report = check("ETEGRecLlama", "tiny", config_dict=full)
    assert report.ok, report.problems
    assert "token table and its head" in report.cells

    none = {**chosen, "tasks": None, "schedule": ["pretraining", "final"]}
    without = plan("ETEGRecLlama", "tiny", config_dict=none)
    planned = plan("ETEGRecLlama", "tiny", config_dict=chosen)
    assert planned.weights["token table and its head"] == 2 * 260 * 16 * 4
    alone = plan("ETEGRecLlama", "tiny", config_dict={**chosen, "mixed_tasks": False})
    assert planned.training.activations > alone.training.activations
    assert alone.training.activations >= without.training.activations
    assert planned.training.total > without.training.total + 2 * 260 * 16 * 4


def test_base_stays_and_table_learns_as_tuning_says(data, base):
    for tuning, learns in (("lora", False), ("full", True)):
        model, train = made(data, base, tuning=tuning)
        before = parameters_of(model.recommender)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        (batch,) = next(iter(train))
        sum(model.losses(TASKS, batch).values()).backward()
        optimizer.step()
        changed = changed_since(model.recommender, before)
        assert ("text.table.weight" in changed, "text.head.weight" in changed) == (learns, learns)


def test_held_out_items_have_no_text_in_any_task(data, base):
    config = small_config(data, **values(base, task_holdout=0.3))
    model, loaders = small_model(config)
    rows = task_rows(config, loaders.train._dataset)
    out = set(held_out_items(config, model.n_items).tolist())
    assert len(out) == 12
    one = [n for n in range(len(rows)) if rows.names[rows.rows.number[n]] == "title_to_codes"]
    assert not out & {int(rows.rows.at[n]) for n in one}
    assert all(
        not lengths[list(out)].any() for lengths in [t.lengths for t in rows._written.values()]
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"tasks": {"title_to_code": 1.0}},
            r"tasks \(title_to_code\) must be one of title_to_codes",
        ),
        ({"base_model": None, "tuning": "full"}, "a decoder from scratch knows no text"),
        ({"schedule": ["tasks"], "tasks": None}, "has a phase tasks, and there is no task"),
        ({"mixed_tasks": False}, "nothing would learn by them"),
        ({"schedule": ["alternation", "tasks", "final"]}, "starts from another model than the"),
    ],
)
def test_tasks_are_refused_when_nothing_can_come_of_them(more, message, data, base):
    with pytest.raises(UserError, match=message):
        check_rules(small_config(data, **values(base, **more)))


def test_tasks_are_refused_when_texts_or_a_tokenizer_are_missing(data, base, tiny_data, tmp_path):
    config = small_config(tiny_data, **values(base, tasks={"title_to_codes": 1.0}))
    with pytest.raises(UserError, match=r"tiny\.item must have a field title"):
        task_rows(config, small_model(config)[1].train._dataset)
    config = small_config(data, **values(base, description_field="abstract"))
    with pytest.raises(UserError, match=r"description_field \(abstract\)"):
        task_rows(config, small_model(config)[1].train._dataset)
    base = saved_with_texts(tmp_path, vocab_size=200, eos_token_id=0)
    config = small_config(data, **values(base))
    with pytest.raises(UserError, match="tokens that its table of 200 has not"):
        task_rows(config, small_model(config)[1].train._dataset)
    config = small_config(data, **values(saved(tmp_path)))
    with pytest.raises(UserError, match="base_model .* its tokenizer"):
        task_rows(config, small_model(config)[1].train._dataset)


def test_new_items_stand_where_their_titles_say_when_asked_for(data, base, tmp_path):
    chosen = values(base, new_item_codes="title", finetune_epochs=2, item_head=True)
    chosen = small_values(data, run_dir=str(tmp_path / "run"), **chosen)
    run_dir = run("ETEGRecLlama", "tiny", config_dict=chosen)["run_dir"]
    config, model, *_ = load_run(run_dir)
    titles = ["«3» ½ 🎬 <end>", "«7» ½ 🎬 <end>, twice as long", "«3» ½ 🎬 <end>"]
    proposed = proposed_codes(config, model, titles)
    for n, title in enumerate(titles):  # padding of a batch says nothing
        alone = proposed_codes(config, model, [title])
        assert torch.equal(alone[0], proposed[n])
    slots = torch.from_numpy(title_prompts(config, titles[:1]))
    rows = task_rows(config, load_run(run_dir)[3]._dataset)
    own = np.flatnonzero(rows.rows.number == 0)
    assert slots[0].tolist() in [rows.row(n).slots[:-4] for n in own]

    items = tmp_path / "new.item"
    lines = [f"n{n}\t{title}" for n, title in enumerate(titles)]
    items.write_text("\n".join(["item_id:token\ttitle:token_seq", *lines]) + "\n", "utf-8")
    assert "3 items added" in add_items(run_dir, str(items))
    _, model, dataset, *_ = load_run(run_dir)
    assert torch.equal(model.codes.table[41:, :-1], proposed[:, 0])
    assert torch.isfinite(model.item_embedding[41:]).all()
    assert recommend(model, dataset, [["n0", "n1"]], k=43)[0]
    items.write_text("item_id:token\ttitle:token_seq\nm1\t\n")
    with pytest.raises(UserError, match="no text in title"):
        add_items(run_dir, str(items))


def test_titles_give_no_codes_when_the_run_did_not_learn_them(data, base):
    chosen = values(base, new_item_codes="title", tasks={"codes_to_title": 1.0})
    with pytest.raises(UserError, match=r"new_item_codes \(title\) needs the task title_to_codes"):
        check_rules(small_config(data, **chosen))


@pytest.mark.slow
def test_loss_of_texts_is_that_of_transformers_for_real_weights(texts_data):
    weights = smollm2()
    options = {"attn_implementation": "sdpa", "quantized": False, "device": "cpu"}
    backbone, text = load_base_model(weights, dtype=torch.float32, text_head="tied", **options)
    config = find_base_config(weights)
    assert config.tie_word_embeddings
    theirs = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state = {f"model.{name}": value for name, value in backbone.state_dict().items()}
    theirs.load_state_dict({**state, "model.embed_tokens.weight": text.table.weight}, strict=False)
    tokens = torch.tensor([[504, 2260, 338, 1115, 260, 1345]])
    with torch.no_grad():
        hidden = backbone.eval()(inputs_embeds=text.embed(tokens)).last_hidden_state
        nll = text.nll(hidden[0, :-1], tokens[0, 1:])
        loss = theirs(tokens, labels=tokens).loss
    torch.testing.assert_close(nll.mean(), loss, **CLOSE)
    vocabulary = vocabulary_of(small_config(texts_data, **values(weights)))
    (written,) = vocabulary.encode(["<|endoftext|> «1» 🎬"])
    assert vocabulary.end and not set(written) & set(vocabulary.end)

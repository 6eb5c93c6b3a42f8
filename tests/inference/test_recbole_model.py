"""`recommend` with RecBole's own models and with exported ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_etegrec.cli import main
from recbole_etegrec.inference.command import open_run
from recbole_etegrec.inference.recommend import rank
from recbole_etegrec.quick_start import run


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory) -> dict[str, str]:
    """Directories of short runs, by model."""
    folder = tmp_path_factory.mktemp("recbole")
    values = {"data_path": tiny_data, "epochs": 1, "use_gpu": False, "show_progress": False}
    values |= {"topk": [5], "valid_metric": "NDCG@5", "MAX_ITEM_LIST_LENGTH": 20}
    for name in ("SASRec", "BPR"):
        run(name, "tiny", config_dict={**values, "run_dir": str(folder / name)})
    return {name: str(folder / name) for name in ("SASRec", "BPR")}


def items_of(loaded, user: str, k: int = 5) -> tuple[list[int], list[float]]:
    users, histories = loaded.histories(None)
    found = rank(loaded.model, histories, np.flatnonzero(users == user), k, 4)
    return found.items[0].tolist(), found.scores[0].tolist()


def test_sasrec_ranks_after_all_that_a_user_has_done(runs, tiny_data):
    loaded = open_run(runs["SASRec"], {}, recbole=True)
    model, dataset = loaded.model, loaded.data[0]
    lines = Path(tiny_data, "tiny", "tiny.inter").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    history = [item for user, item, _ in sorted(rows, key=lambda r: float(r[2])) if user == "u2"]
    assert len(history) == 70  # longer than the model sees
    ids = [dataset.token2id("item_id", item) for item in history[-20:]]
    batch = {"item_id_list": torch.tensor([ids]), "item_length": torch.tensor([20])}
    scores = model.model.full_sort_predict(batch)[:, : model.n_items]
    scores[:, 0] = -torch.inf
    best = scores.log_softmax(dim=1)[0].topk(5)
    items, found = items_of(loaded, "u2")
    assert items == best.indices.tolist()
    assert found == pytest.approx(best.values.tolist(), abs=1e-5)
    named = loaded.given(",".join(history))
    again = rank(model, named.histories, np.arange(1), 5, 4)
    assert again.items[0].tolist() == items


def test_history_is_left_out_when_it_is_asked_for(runs):
    loaded = open_run(runs["SASRec"], {"exclude-history": "True"}, recbole=True)
    users, histories = loaded.histories(None)
    row = np.flatnonzero(users == "u0")
    seen = histories.batch(row)[1][1].tolist()
    assert len(set(seen)) == 3
    ranked = rank(loaded.model, histories, row, 40, 4).items[0].tolist()
    assert sorted(filter(None, ranked)) == sorted(set(range(1, loaded.model.n_items)) - set(seen))


def test_bpr_ranks_for_users_and_leaves_their_histories_out_as_recbole_does(runs, capsys):
    loaded = open_run(runs["BPR"], {}, recbole=True)
    user = loaded.data[0].token2id("user_id", "u3")
    scores = loaded.model.model.full_sort_predict({"user_id": torch.tensor([user])}).view(1, -1)
    users, histories = loaded.histories(None)
    seen = histories.batch(np.flatnonzero(users == "u3"))[1][1]
    scores[0, seen] = scores[0, 0] = -torch.inf
    assert items_of(loaded, "u3")[0] == scores[0].topk(5).indices.tolist()
    assert main(["recommend", runs["BPR"], "--users", "u3,u4", "--k", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert main(["recommend", runs["BPR"], "--history", "i3"]) == 2
    assert "it ranks for users" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SASRec", "BPR"])
def test_command_writes_a_file_for_all_users_and_for_a_split(name, runs, tmp_path):
    for split in ([], ["--split=test"]):
        out = tmp_path / f"{name}{len(split)}.csv"
        assert main(["recommend", runs[name], "--all", "--k=3", f"--out={out}", *split]) == 0
        assert len(out.read_text().splitlines()) >= 1 + 3 * 59  # one has seen nearly all items

"""What `codes` prints of a finished run, and a run whose tokenizer is k-means and nothing else."""

import json
from pathlib import Path

import pytest
import torch

from recbole_etegrec.cli import main
from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.item_file import read_titles
from recbole_etegrec.quick_start import run
from recbole_etegrec.runs.load import load_run
from tests.conftest import write_interactions
from tests.helpers import small_config, small_values

ITEMS = 40


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The directory of a run on items with titles, `Title 3` for `i3`; `i7` has none."""
    folder = tmp_path_factory.mktemp("titled")
    histories = [[(3 * user + step) % ITEMS for step in range(12)] for user in range(50)]
    write_interactions(folder, "titled", histories)
    rows = [f"i{n}\tBrand\tTitle {n}" for n in range(ITEMS) if n != 7]
    text = "\n".join(["item_id:token\tbrand:token_seq\ttitle:token_seq", *rows])
    (folder / "titled" / "titled.item").write_text(text + "\n")
    values = {"tokenizer": "rqkmeans", "collision": "sinkhorn", "code_num": 6, "warm_epochs": 0}
    run_dir = folder / "run"
    config_dict = small_values(str(folder), run_dir=str(run_dir), **values)
    run("ETEGRecLlama", "titled", config_dict=config_dict)
    return run_dir


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["codes", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a refused command."""
    assert main(["codes", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_run_records_the_health_of_codes_when_they_are_rebuilt(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    stages = [line.get("trains", line["phase"]) for line in lines]
    assert stages == ["codes", "tokenizer", "recommender", "recommender"]  # nothing to pretrain
    for line in lines[:2]:
        assert line["largest_group"] == 1
        assert line["nearest_collision_rate"] > line["collision_rate"] == 0
        assert 0 < line["reconstruction"] < 1  # 1: as bad as no code at all
        assert 0 < line["neighbours_kept"] <= 1
    assert lines[0]["changed"] == 0  # the codes that the model was made with
    model = load_run(str(finished))[1]
    kept = json.loads((finished / "best" / "model.json").read_text())
    assert model.codes.digest() == kept["codes"]
    assert model.recommender.code_embedding.codebooks.shape == (3, 6, 10)  # not e_dim


def test_codes_prints_health_and_tree_when_a_run_is_named(finished, capsys):
    output = printed(capsys, str(finished))
    model = load_run(str(finished))[1]
    found = model.fidelity()
    assert output.startswith("ETEGRecLlama on titled: 40 items, tokenizer rqkmeans, ")
    assert f"neighbours kept {found['neighbours_kept']:.1%}" in output
    assert "collisions 0.00% of items, largest group 1" in output
    rows = output.split("nearest to its centre\n")[1].splitlines()
    codes = model.codes.table[1:]
    sizes = torch.bincount(codes[:, 0])
    assert len(rows) == int((sizes > 0).sum())
    assert [int(row.split()[1]) for row in rows] == sizes[sizes > 0].sort(descending=True)[
        0
    ].tolist()
    for row in rows:
        code, size, pairs, triples = map(int, row.split()[:4])
        below = codes[codes[:, 0] == code]
        assert (len(below), len(below[:, :2].unique(dim=0))) == (size, pairs)
        assert len(below[:, :3].unique(dim=0)) == triples
    assert "Title" in output and "Brand" not in output


def test_codes_prints_an_items_neighbours_when_it_is_named(finished, capsys):
    output = printed(capsys, str(finished), "--item=i5")
    _, model, dataset, *_ = load_run(str(finished))
    item = dataset.token2id(dataset.iid_field, "i5")
    codes, embedding = model.codes.table, model.item_embedding
    shared = (codes == codes[item]).int().cumprod(dim=1).sum(dim=1)
    expected = [
        (-int(shared[other]), float((embedding[other] - embedding[item]).norm()), other)
        for other in range(1, 41)
        if shared[other] and other != item
    ]
    assert expected
    lines = output.splitlines()
    assert lines[0] == "item i5 Title 5"
    assert lines[1] == "codes " + " ".join(map(str, codes[item].tolist()))
    for line, (levels, distance, other) in zip(lines[4:], sorted(expected)[:20], strict=True):
        columns = line.split()
        token = str(dataset.id2token(dataset.iid_field, other))
        assert int(columns[0]) == -levels
        assert float(columns[1]) == pytest.approx(distance, abs=1e-3)
        assert columns[2:6] == list(map(str, codes[other].tolist()))
        assert columns[6:] == [token, *(() if token == "i7" else ("Title", token[1:]))]


def test_codes_is_refused_in_one_line_when_something_is_not_there(finished, tmp_path, capsys):
    assert "item 'i4x' is not in titled; did you mean 'i4" in refused(
        capsys, str(finished), "--item=i4x"
    )
    assert "no config.yaml" in refused(capsys, str(tmp_path))
    assert "expected the directory of a run" in refused(capsys)
    assert "expected the directory of a run" in refused(capsys, "--item=i4")
    (tmp_path / "config.yaml").write_text("model: BPR\ndataset: titled\n")
    assert "a run of BPR; name a run of ETEGRecLlama, " in refused(capsys, str(tmp_path))


@pytest.mark.parametrize(
    ("header", "title"),
    [
        ("item_id:token\tclass:token\ttitle:token", "b"),
        ("item_id:token\tname:token_seq\tclass:token_seq", "a"),
        ("item_id:token\tclass:token\tyear:float", None),
        ("other:token\tclass:token\ttitle:token_seq", None),
        (None, None),
    ],
)
def test_read_titles_takes_the_field_that_has_words(header, title, tmp_path):
    write_interactions(tmp_path, "some", [[1, 2, 3, 4]])
    if header:
        (tmp_path / "some" / "some.item").write_text(f'{header}\ni1\ta\tb\ni2\t"c\td\n')
    titles = read_titles(AtomicFiles.of(small_config(str(tmp_path), "some")))
    assert titles.get("i1") == title
    assert set(titles) == ({"i1", "i2"} if title else set())

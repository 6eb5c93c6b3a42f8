"""The page that `report` writes about runs, finished or not."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from recbole_etegrec.cli import main
from recbole_etegrec.quick_start import run
from recbole_etegrec.report import ranking
from recbole_etegrec.report.charts import Axis, Band, Series, line_chart, nice_ticks, tick_labels
from recbole_etegrec.report.ranking import (
    Rankings,
    by_age,
    by_bins,
    by_frequency,
    examples,
    rank,
)
from recbole_etegrec.storage.run_directory import RunDirectory
from tests.conftest import write_interactions
from tests.helpers import small_values

ITEMS = 40


class Page(HTMLParser):
    """The text of a page; an element that is closed out of turn is an error."""

    def __init__(self, path: Path):
        super().__init__()
        self.html = path.read_text("utf-8")
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(self.html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data_path with `titled`: 50 users, 40 items, all titles with a `<`."""
    folder = tmp_path_factory.mktemp("titled")
    histories = [[(3 * user + step) % ITEMS for step in range(6 + user % 7)] for user in range(50)]
    write_interactions(folder, "titled", histories)
    rows = [f"i{n}\tTitle <{n}> & more" for n in range(ITEMS)]
    text = "\n".join(["item_id:token\ttitle:token_seq", *rows])
    (folder / "titled" / "titled.item").write_text(text + "\n")
    return folder


@pytest.fixture(scope="module")
def finished(folder) -> Path:
    """The directory of a finished run, its name one to be escaped."""
    run_dir = folder / "run <1>"
    values = {"warm_epochs": 0, "metric_decimal_place": 8, "exclude_history": True}
    values = small_values(str(folder), run_dir=str(run_dir), **values)
    run("ETEGRecLlama", "titled", config_dict=values)
    return run_dir


@pytest.fixture(scope="module")
def rankings(finished) -> Rankings:
    return rank(RunDirectory(finished))


def page_of(out: Path, *arguments: str | Path) -> Page:
    assert main(["report", *map(str, arguments), f"--out={out}"]) == 0
    return Page(out)


def test_report_shows_metrics_stages_and_examples_when_a_run_is_finished(finished, tmp_path):
    page = page_of(tmp_path / "page.html", finished)
    result = json.loads((finished / "result.json").read_text())
    for key in ("test_result", "best_valid_result"):
        for name, value in result[key].items():
            assert f'<th class="number">{name}</th>' in page.html
            assert f'<td class="number">{value:.4f}</td>' in page.html
    for word in ("pretraining", "alternation", "final", "Learning rate"):
        assert word in page.text
    assert "(SIA)" not in page.text  # of one aligned epoch, a single point
    for word in ("Perplexity", "Nearest neighbours kept", "level 2", "torch"):
        assert word in page.text
    assert "run <1>" in page.text and "run <1>" not in page.html
    assert len(re.findall(r"Then: Title <\d+> & more \((?:hit at|not in)", page.text)) == 5


def test_report_needs_nothing_else_when_it_is_opened(finished, tmp_path):
    html = page_of(tmp_path / "page.html", finished).html
    assert not re.search(r"https?:|<script|<link|<img|@import|url\(|<\d", html)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_report_ranks_a_sample_when_there_are_many_test_users(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "_USERS", 20)
    page = page_of(tmp_path / "page.html", finished)
    assert "Of a sample of 20 of the 50 test users" in page.text
    assert sum(map(int, re.findall(r"\((\d+)\)</text>", page.html))) == 2 * 20  # of two charts


def test_report_goes_into_the_run_when_no_file_is_named(finished, tmp_path, capsys):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    assert main(["report", str(run_dir), "--examples=False"]) == 0
    assert capsys.readouterr().out == f"{run_dir}/report.html\n"
    page = Page(run_dir / "report.html")
    assert "Recommendation loss" in page.text and "Examples" not in page.text


def test_report_tells_what_is_there_when_a_run_is_not_finished(finished, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "run <2>")
    (run_dir / "result.json").unlink()
    shutil.rmtree(run_dir / "best")
    lines = (run_dir / "metrics.jsonl").read_text()
    (run_dir / "metrics.jsonl").write_text(lines[: lines.index('"final"')])  # within a line
    page = page_of(tmp_path / "page.html", run_dir)
    assert "not finished" in page.text
    assert "alternation" in page.text and "Examples" not in page.text
    assert "the run has no best/" in page.text and "<2>" not in page.html
    (run_dir / "metrics.jsonl").write_text("")
    assert "No epochs are recorded" in page_of(tmp_path / "page.html", run_dir).text


def test_report_marks_the_best_of_each_metric_when_there_are_several_runs(
    finished, folder, tmp_path
):
    baseline = tmp_path / "baseline"
    values = {"data_path": str(folder), "run_dir": str(baseline), "state": "WARNING"}
    values["user_inter_num_interval"] = "[0,inf)"
    run("Pop", "titled", config_dict={**values, "epochs": 1, "show_progress": False})
    page = page_of(tmp_path / "page.html", finished, baseline)
    results = [json.loads((path / "result.json").read_text()) for path in (finished, baseline)]
    for key in ("test_result", "best_valid_result"):
        for name, value in results[0][key].items():
            best = max(value, results[1][key][name])
            assert f'<td class="number best">{best:.4f}</td>' in page.html
    assert "What differs" in page.text and "num_beams" not in page.text  # both have what differs
    assert "no curves here: baseline" in page.text and "<h2>baseline" not in page.html


def test_report_has_tables_and_pngs_when_a_whole_comparison_is_given(finished, tmp_path):
    pytest.importorskip("resvg_py")
    shutil.copytree(finished, tmp_path / "run")
    columns = {"ndcg@10": {"mean": 0.125, "std": None}}
    rows = [{"model": "ETEGRecLlama", "columns": columns}]
    comparison = {
        "dataset": "titled",
        "valid_metric": "NDCG@10",
        "tables": {"kept": rows, "excluded": rows},
        "runs": [{"run_dir": "/moved/run"}, {"run_dir": "/moved/not_begun"}],
    }
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    assert main(["report", str(tmp_path), "--png", "--examples=False"]) == 0
    page = Page(tmp_path / "report.html")
    assert page.html.count('<td class="number best">0.1250</td>') == 2
    assert "test, history kept" in page.text and "test, history excluded" in page.text
    pngs = sorted((tmp_path / "report.png").iterdir())
    assert len(pngs) == page.html.count("<svg")
    assert all(png.read_bytes().startswith(b"\x89PNG") for png in pngs)


def test_report_is_refused_in_one_line_when_input_is_bad(finished, tmp_path, capsys):
    cases = {
        (str(tmp_path),): "no config.yaml; is it the directory of a run?",
        (): "expected the directories of runs",
        (str(finished), "--data_pth=x"): "did you mean 'data_path'?",
        (str(finished), f"--data_path={tmp_path}"): "dataset 'titled': no file",
        (str(finished), f"--out={tmp_path}/no/page.html", "--examples=False"): "cannot be written",
    }
    for arguments, message in cases.items():
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_bins_hold_all_users_and_average_to_the_test_metric(finished, rankings):
    result = json.loads((finished / "result.json").read_text())["test_result"]
    assert rankings.k == 10 and rankings.tested == len(rankings.place) == 50
    for values in (rankings.popularity, rankings.length, np.zeros(50, int)):
        bins = by_bins(rankings, values)
        assert sum(users for _, users, _ in bins) == 50
        for place, name in enumerate(("recall@10", "ndcg@10")):
            mean = sum(users * bars[place].value for _, users, bars in bins) / 50
            assert mean == pytest.approx(result[name], abs=1e-7)
    assert 0 < result["recall@10"] < 1


def test_groups_of_items_hold_all_that_is_shown_and_average_to_the_recall(finished, rankings):
    recall = json.loads((finished / "result.json").read_text())["test_result"]["recall@10"]
    for groups in (by_frequency(rankings), by_age(rankings)):
        assert sum(group.items for group in groups) == ITEMS
        assert sum(group.shown for group in groups) == pytest.approx(1)
        tested = [group for group in groups if group.tested]
        assert sum(group.tested for group in tested) == 50
        hits = sum(group.tested * group.recall for group in tested)
        assert hits / 50 == pytest.approx(recall, abs=1e-7)
    later = rankings._replace(added=np.arange(ITEMS + 1) > 30)
    assert (by_frequency(later)[0].name, by_frequency(later)[0].items) == ("added later", 10)


def test_rank_tells_users_histories_and_how_often_items_are_trained_on(folder, rankings):
    histories = [[(3 * user + step) % ITEMS for step in range(6 + user % 7)] for user in range(50)]
    trained = np.bincount([item for history in histories for item in history[:-2]])
    expected = sorted((len(h) - 1, trained[h[-1]], f"Title <{h[-1]}> & more") for h in histories)
    names = [rankings.names[item] for item in rankings.target]
    assert sorted(zip(rankings.length, rankings.popularity, names, strict=True)) == expected
    last = {tuple(f"Title <{item}> & more" for item in h[:-1][-8:]) for h in histories}
    shown = examples(rankings)
    assert len(shown) == 5
    for example in shown:
        assert tuple(example.history) in last
        assert len(set(example.recommended)) == 10
        if example.hit is not None:
            assert example.recommended[example.hit] == example.target
    assert [example.hit is not None for example in shown[:2]] == [True, True]


def test_nice_ticks_are_round_when_the_range_is_not():
    assert nice_ticks(0.013, 0.087) == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert nice_ticks(0, 26, 4) == [0, 10, 20]


def test_tick_labels_differ_when_ticks_are_close_and_are_written_alike():
    assert tick_labels([0.9658, 0.966, 0.9662], shares=False) == ["0.9658", "0.9660", "0.9662"]
    assert tick_labels([0, 5e-05, 1e-4], shares=False) == ["0.00000", "0.00005", "0.00010"]
    assert tick_labels([0, 1000], shares=False) == ["0", "1000"]
    assert tick_labels([0.209, 0.2095, 0.21], shares=True) == ["20.90%", "20.95%", "21.00%"]
    assert tick_labels([0.9, 0.95, 1.0], shares=True) == ["90%", "95%", "100%"]
    assert tick_labels([0.5], shares=True) == ["50%"]


def test_line_chart_leaves_out_what_is_not_finite():
    axis = Axis("epoch", [Band(0, 2, "final")], [])
    points = [(0.5, float("nan")), (1.0, 3.0), (1.5, float("inf"))]
    chart = line_chart("a < b", [Series("one", points)], axis)
    assert chart.count("<circle") == 1 and "nan" not in chart and "inf" not in chart
    assert "a &lt; b" in chart
    assert line_chart("", [Series("one", points[:1])], axis) == ""

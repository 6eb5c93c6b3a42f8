"""What a user adds by an entry in a table, and no change elsewhere, works in a run."""

import json
from pathlib import Path

import pytest
import torch

from recbole_etegrec import run
from recbole_etegrec.config.keys import KEYS, share, weight
from recbole_etegrec.losses import OBJECTIVES, ForwardPass, Objective
from recbole_etegrec.quick_start import check
from recbole_etegrec.report.curves import loss_charts
from recbole_etegrec.runs.recorded_run import read_run
from recbole_etegrec.trainer.schedule import SCHEDULES, Phase, Stage
from tests.helpers import small_values

pytestmark = pytest.mark.slow  # whole runs


def lines_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def confidence(forward: ForwardPass, confidence_margin: float) -> torch.Tensor:
    """How far above a margin the probabilities of guessed codes are."""
    peak = forward.logits.float().softmax(dim=-1).amax(dim=-1)  # [n, L]
    return forward.mean_over_targets((peak - confidence_margin).clamp_min(0).mean(dim=1))


CONFIDENCE = Objective(
    confidence,
    needs={"logits"},
    trains=("recommender",),
    title="Confidence",
    unit="probability",
    weight="confidence_weight",
    options=("confidence_margin",),
    reaches=("output projector",),
)


def test_run_minimises_an_objective_of_ones_own_when_it_is_in_the_table(
    tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setitem(OBJECTIVES, "confidence", CONFIDENCE)
    monkeypatch.setitem(KEYS, "confidence_weight", weight())
    monkeypatch.setitem(KEYS, "confidence_margin", share())
    values = {"confidence_weight": 0.5, "confidence_margin": 0.1, "finetune_epochs": 2}
    values = small_values(tiny_data, run_dir=str(tmp_path / "run"), **values)
    run("ETEGRecLlama", "tiny", config_dict=values)
    epochs = [line for line in lines_of(tmp_path / "run") if line.get("trains")]
    assert {line["trains"] for line in epochs if "confidence" in line} == {"recommender"}
    assert all("confidence" in line for line in epochs if line["trains"] == "recommender")
    assert any(
        "Confidence, probability" in chart for chart in loss_charts(read_run(values["run_dir"]))
    )

    report = check("ETEGRecLlama", "tiny", config_dict=values)
    assert report.ok, report.problems
    assert report.losses["final"].keys() == {"recommendation", "confidence"}
    assert "confidence" in str(report)


def polish(config) -> Phase:
    """The tokenizer's decoder once more, then the recommender, by rates of its own."""
    name = "polish"
    stages = (
        Stage(name, "tokenizer", {"quantization": 1.0}, measure_codes=True),
        Stage(name, "recommender", {"recommendation": 1.0}, evaluate=True),
    )
    rates = {"tokenizer": 1e-5, "recommender": config["learning_rate"] / 2}
    return Phase(name, stages, rates, course="cosine", starts_from="best")


def test_run_passes_through_a_phase_of_ones_own_when_the_schedule_names_it(
    tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setitem(SCHEDULES, "polish", polish)
    values = {"schedule": ["pretraining", "alternation", "final", "polish"], "warmup_steps": 0}
    values = small_values(tiny_data, run_dir=str(tmp_path / "run"), **values)
    outcome = run("ETEGRecLlama", "tiny", config_dict=values)
    assert outcome["test_result"]["recall@20"] > 0
    lines = lines_of(tmp_path / "run")
    assert [(line["epoch"], line["phase"], line["trains"]) for line in lines[3:]] == [
        (0, "alternation", "tokenizer"),
        (1, "alternation", "recommender"),
        (2, "final", "recommender"),
        (3, "polish", "tokenizer"),
        (4, "polish", "recommender"),
    ]
    assert "usage" in lines[-2] and "valid_result" in lines[-1]
    report = check("ETEGRecLlama", "tiny", config_dict=values)
    assert report.ok, report.problems
    names = ["pretraining", "tokenizer", "recommender", "final"]
    assert report.stages == [*names, "polish tokenizer", "polish recommender"]

"""The benchmark's own arithmetic and slow paths, and all of it once on a tiny decoder."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recbole_etegrec.data import SequenceBatch
from tests.benchmarks.flops import useful_flops
from tests.benchmarks.gpu import small
from tests.benchmarks.gpu.__main__ import TINY, main
from tests.benchmarks.gpu.bench import write_random_weights
from tests.benchmarks.gpu.checks import CHECKS
from tests.helpers import small_config, small_model, small_values


@pytest.mark.parametrize("name", CHECKS)
def test_check_passes_when_the_device_is_a_cpu(name):
    figures = CHECKS[name](torch.device("cpu"))
    assert figures["passed"], figures


def test_useful_flops_are_those_torch_counts_when_nothing_is_padded(tiny_data, tmp_path):
    write_random_weights(TINY, str(tmp_path), torch.device("cpu"))
    values = {"base_model": str(tmp_path), "tuning": "lora", "lora_r": 4}
    config = small_config(tiny_data, **values, attn_implementation="eager")
    model, _ = small_model(config)
    items, index = torch.randint(1, model.n_items, (3, 8)), torch.arange(3 * 7)
    targets = items[:, 1:].flatten()
    batch = SequenceBatch(items, index, targets, targets, index, len(index), items.numel(), 1)
    with FlopCounterMode(display=False) as counter:
        output = model.recommender(model.codes(batch.items), batch.target_index)
        sum(part.sum() for part in output[:3]).backward()
    rows, tokens = len(batch.items), batch.items.shape[1] * 4 - 1
    hidden = rows * tokens * (tokens - 1) // 2  # pairs that eager computes, and masks
    spared = 12 * TINY["hidden_size"] * TINY["num_hidden_layers"] * hidden
    expected = counter.get_total_flops() - spared
    assert useful_flops(model.recommender, [batch]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_rows_are_written_without_an_error_when_rehearsed(tiny_data, tmp_path):
    out = tmp_path / "rows.json"
    main(
        [
            "--rehearse",
            "--sections=train,decode,few,fused",
            f"--out={out}",
            "--dataset=tiny",
            f"--data_path={tiny_data}",
            "--max_tokens=256",
            "--eval_batch_size=8",
            "--use_gpu=False",
        ]
    )
    rows = json.loads(out.read_text())["rows"]
    assert {row["section"] for row in rows} == {"load", "train", "decode", "few", "fused"}
    assert [row for row in rows if "error" in row] == []
    found = {row["name"]: row for row in rows}
    assert found["first design"]["times_slower"] > 1
    assert found["4 users run again, longest"]["scores_differ_by"] < 0.1


@pytest.mark.slow
def test_rows_of_texts_are_written_without_an_error_when_rehearsed(texts_data, tmp_path):
    arguments = ["--rehearse", "--sections=texts", "--dataset=tiny", f"--data_path={texts_data}"]
    out = tmp_path / "rows.json"
    main([*arguments, f"--out={out}", "--eval_batch_size=8", "--use_gpu=False"])
    rows = json.loads(out.read_text())["rows"]
    assert [row for row in rows if "error" in row] == []
    steps = [row for row in rows if row["section"] == "texts"]
    assert len(steps) == 2
    assert all(row["finite"] and row["plan_gib"] > 0 for row in steps)


@pytest.mark.slow
def test_small_decoder_is_measured_without_an_error_when_rehearsed(tiny_data, tmp_path):
    values = small_values(tiny_data, use_gpu=False, tokenizer_epochs=1, item_head=True)
    parts = ["--parts=runs,epochs,ranking,few", "--datasets=tiny"]
    rows = small.main(parts, values, tmp_path / "out")
    assert [row for row in rows if "error" in row] == []
    assert {row["part"] for row in rows} == {"runs", "epochs", "ranking", "few"}
    whole = rows[0]
    assert whole["run"] > whole["training"] > 0
    assert "valid ndcg@10" in whole
    assert json.loads((tmp_path / "out" / "small.json").read_text()) == rows

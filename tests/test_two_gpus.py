"""Two GPUs and NCCL: they train as one does, and a comparison uses both: `pytest -m gpu`."""

import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import small_values
from tests.recommender.base_models import saved
from tests.trainer.test_distributed import (
    CHANGES,
    SCRIPT,
    arguments,
    assert_same_outcome,
    assert_same_training,
    epochs_of,
    execute,
    launch,
    result_of,
    small_run,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices"),
]
NAMES = ("shared", "lora", "head")
MAIN = "import sys; from recbole_etegrec.cli import main; sys.exit(main())"


@pytest.fixture(scope="module", params=NAMES)
def one_gpu(request, tiny_data, tmp_path_factory) -> tuple[dict, Path]:
    """The values of a run in fp32, and the directory where one GPU has run it."""
    folder = tmp_path_factory.mktemp(request.param)
    values = {**CHANGES[request.param], "use_gpu": True, "cuda_graphs": False}
    if request.param == "lora":
        values["base_model"] = saved(folder)
    run = small_run(tiny_data, folder / "one", **values)
    ended = execute(sys.executable, SCRIPT, *arguments(run))
    assert ended.code == 0, ended.output
    return values, folder / "one"


def test_two_gpus_train_as_one_when_each_has_a_whole_model(one_gpu, tiny_data, tmp_path):
    values, one = one_gpu
    run = small_run(tiny_data, tmp_path / "two", **values)
    ended = launch(SCRIPT, *arguments(run), config="ddp_bf16")
    assert ended.code == 0, ended.output
    assert_same_training(one, tmp_path / "two")
    assert_same_outcome(one, tmp_path / "two")


def test_two_gpus_train_as_one_when_the_backbone_is_sharded(one_gpu, tiny_data, tmp_path):
    values, one = one_gpu
    run = small_run(tiny_data, tmp_path / "two", **values)
    ended = launch(SCRIPT, *arguments(run), config="fsdp_bf16")
    assert ended.code == 0, ended.output
    learned = 1e-4  # of the first epoch; small steps of AdamW make more of how sums are rounded
    for first, second in zip(epochs_of(one), epochs_of(tmp_path / "two"), strict=True):
        assert ("recommendation" in first) == ("recommendation" in second)
        if "recommendation" in first:
            expected = pytest.approx(first["recommendation"], rel=learned)
            assert second["recommendation"] == expected, first["epoch"]
            learned = 1e-2
    assert result_of(tmp_path / "two")["test_result"]["recall@20"] > 0


def test_comparison_gives_each_gpu_a_run(tiny_data, tmp_path):
    values = small_values(tiny_data, models="ETEGRecLlama,SASRec", seeds="2020,2021", jobs=2)
    values |= {"dataset": "tiny", "out": str(tmp_path / "out"), "use_gpu": True}
    ended = execute(sys.executable, "-c", MAIN, "compare", *arguments(values))
    assert ended.code == 0, ended.output

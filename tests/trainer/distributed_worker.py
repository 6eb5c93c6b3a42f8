"""What each process of a launch runs for `test_distributed.py`.

- ``distributed_worker.py record FOLDER``: the runs of ``FOLDER/plan.json``, one after another;
  ``FOLDER/NAME.RANK.json`` tells the model after each stage of one.
- ``distributed_worker.py shard ARGUMENT ...``: a command line under FSDP, on the CPU. accelerate
  shards on accelerators alone, so it is told that these processes have one each.
- ``distributed_worker.py fail STEP ARGUMENT ...``: a command line whose training step of that
  number raises on rank 1.
"""

import functools
import hashlib
import json
import sys
from itertools import count
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.utils._pytree import tree_leaves

from recbole_etegrec import cli, quick_start
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.trainer import ETEGRecTrainer


def model_digest(model) -> str:
    """A hash of all parameters and tables of a model, in every bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted({**model.state_dict(), **dict(model.named_buffers())}.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def recorded(stage: str, stages: list[tuple[str, str]]) -> None:
    """Have a method of the trainer append its name, and the model's digest after it."""
    method = getattr(ETEGRecTrainer, stage)

    @functools.wraps(method)
    def wrapped(self, *arguments, **more):
        outcome = method(self, *arguments, **more)
        stages.append((stage, model_digest(self.model)))
        return outcome

    setattr(ETEGRecTrainer, stage, wrapped)


def record(folder: Path) -> None:
    """Run what is planned; leave what became of the model."""
    stages: list[tuple[str, str]] = []
    for stage in ("_train_epoch", "settle_codes", "fit"):
        recorded(stage, stages)
    for name, values in json.loads((folder / "plan.json").read_text()).items():
        stages.clear()
        quick_start.run(config_dict=values)
        file = folder / f"{name}.{PartialState().process_index}.json"
        file.write_text(json.dumps(stages))


def fail(number: int, arguments: list[str]) -> int:
    """Run a command line that breaks; returns its exit code."""
    step, numbers = Engine.step, count(1)

    def wrapped(self, *arguments):
        if PartialState().process_index == 1 and next(numbers) == number:
            raise RuntimeError(f"rank 1 breaks in step {number}")
        return step(self, *arguments)

    Engine.step = wrapped
    return cli.main(arguments)


def given_types(expected: torch.dtype, _, inputs: tuple, options: dict) -> None:
    """Look at what a layer is given before FSDP casts it.

    Before 2.13 torch casts nothing when a checkpoint runs the layer anew.
    """
    tensors = [t for t in tree_leaves((inputs, options)) if torch.is_tensor(t)]
    assert {t.dtype for t in tensors if t.is_floating_point()} == {expected}


def shard(arguments: list[str]) -> int:
    """Run a command line whose recommender is sharded; returns its exit code."""
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trained = Engine.__init__

    def wrapped(self, *arguments):
        trained(self, *arguments)
        kinds = {name: type(p).__name__ for name, p in self.model.recommender.named_parameters()}
        whole = {name for name, kind in kinds.items() if kind != "DTensor"}
        assert self.accelerator.is_fsdp2
        assert whole == {name for name in kinds if not name.startswith("backbone.")}
        policy = self.accelerator.state.fsdp_plugin.mixed_precision_policy
        for layer in self.model.recommender.backbone.modules():
            if policy is not None and isinstance(layer, FSDPModule):
                given = functools.partial(given_types, policy.param_dtype)
                layer.register_forward_pre_hook(given, prepend=True, with_kwargs=True)

    Engine.__init__ = wrapped
    return cli.main(arguments)


if __name__ == "__main__":
    if sys.argv[1] == "shard":
        sys.exit(shard(sys.argv[2:]))
    if sys.argv[1] == "fail":
        sys.exit(fail(int(sys.argv[2]), sys.argv[3:]))
    record(Path(sys.argv[2]))

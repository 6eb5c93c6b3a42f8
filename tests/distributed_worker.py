"""What each process of a launch runs for `test_distributed.py`: command lines, one after another.

``distributed_worker.py PLAN``: a JSON file of

- ``runs``: command lines by name;
- ``digests``: the folder for ``NAME.RANK.json``, the model after each stage of a run; or null;
- ``fails_at``: the training step that raises on rank 1; or null.
"""

import functools
import hashlib
import json
import sys
from itertools import count
from pathlib import Path

from accelerate import PartialState

from recbole_etegrec.cli import main
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.trainer import ETEGRecTrainer

STAGES = ("_pretrain", "_train_epoch", "fit")


def model_digest(model) -> str:
    """A hash of all parameters and tables of a model, in every bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted({**model.state_dict(), **dict(model.named_buffers())}.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def record_stages(stages: list[tuple[str, str]]) -> None:
    """Have trainers append the name of each stage, and the model's digest after it."""

    def recorded(name: str):
        method = getattr(ETEGRecTrainer, name)

        @functools.wraps(method)
        def wrapped(self, *arguments, **more):
            outcome = method(self, *arguments, **more)
            stages.append((name, model_digest(self.model)))
            return outcome

        return wrapped

    for name in STAGES:
        setattr(ETEGRecTrainer, name, recorded(name))


def fail_at(number: int) -> None:
    """Have training step ``number`` raise on rank 1."""
    step, numbers = Engine.step, count(1)

    def wrapped(self, *arguments):
        if PartialState().process_index == 1 and next(numbers) == number:
            raise RuntimeError(f"rank 1 breaks in step {number}")
        return step(self, *arguments)

    Engine.step = wrapped


def work(plan: dict) -> int:
    """Run what a plan holds; returns the first exit code that is not 0."""
    stages: list[tuple[str, str]] = []
    record_stages(stages)
    if plan["fails_at"]:
        fail_at(plan["fails_at"])
    for name, arguments in plan["runs"].items():
        stages.clear()
        if code := main(arguments):
            return code
        if plan["digests"]:
            file = Path(plan["digests"]) / f"{name}.{PartialState().process_index}.json"
            file.write_text(json.dumps(stages))
    return 0


if __name__ == "__main__":
    sys.exit(work(json.loads(Path(sys.argv[1]).read_text())))

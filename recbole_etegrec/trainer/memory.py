"""How much memory a run takes, and what to turn when there is too little."""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from recbole_etegrec.errors import TrainingError

TRAINING_KNOBS = (
    "raise gradient_accumulation_steps (the same step in more micro-batches; a resumed run may), "
    "or in a new run lower max_tokens or MAX_ITEM_LIST_LENGTH, or choose precision bf16"
)
EVALUATION_KNOBS = "lower eval_batch_size (a resumed run may), or num_beams in a new run"


def memory_gib(device: torch.device) -> float:
    """Memory of this process: the most it held on a GPU, or what it holds in use of the CPU's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


@contextmanager
def out_of_memory_explained(what: str, knobs: str) -> Iterator[None]:
    """Tell what to do where the block runs out of memory.

    Raises:
        TrainingError: in place of torch's own error.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's has no class
        short = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not short:
            raise
        reason = str(error).splitlines()[0]
        raise TrainingError(f"out of memory in {what}: {knobs} ({reason})") from error

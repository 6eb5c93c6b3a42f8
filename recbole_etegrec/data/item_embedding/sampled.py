"""Training SASRec on a large catalogue: a sample of the items tells a target from others.

A step reads and moves the vectors of its own items and of the sample alone, so its time does not
grow with the catalogue; and what is done is kept after each epoch, so that a stopped training goes
on.
"""

import json
import logging
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from recbole_etegrec.storage.atomic import atomic_file

logger = logging.getLogger(__name__)

SAMPLE = 16_384  # items that targets are told from


def sampled_loss(
    states: torch.Tensor, targets: torch.Tensor, items: nn.Embedding, most: int = SAMPLE
) -> torch.Tensor:
    """The mean cross-entropy of targets among a sample of the items, in nats.

    Sampled softmax with the correction ``- log q`` (Bengio and Senecal, 2008): one item is drawn
    from each of `most` equal stretches of the catalogue, so that each has the same chance ``q``.

    Args:
        states: ``[n, H]``.
        targets: item ids ``[n]``.
        items: the table of items, that of the padding first.
    """
    count = items.num_embeddings - 1
    most = min(most, count)
    place = torch.arange(most, device=states.device, dtype=torch.float64)
    place += torch.rand(most, device=states.device, dtype=torch.float64)
    ids = 1 + (place * (count / most)).long().clamp_max(count - 1)
    own = (states * items(targets)).sum(dim=1, keepdim=True)
    scores = states @ items(ids).T
    scores = scores.masked_fill(targets.unsqueeze(1) == ids, -torch.inf) + math.log(count / most)
    scores = torch.cat([own, scores], dim=1)
    return F.cross_entropy(scores, torch.zeros_like(targets))


class SparseAndDense:
    """Adam of a model whose table of items has sparse gradients; its other parameters have none."""

    def __init__(self, model: nn.Module, learning_rate: float):
        table = model.item_embedding.weight
        others = [p for p in model.parameters() if p is not table]
        self.each = {
            "table": torch.optim.SparseAdam([table], lr=learning_rate),
            "others": torch.optim.Adam(others, lr=learning_rate),
        }

    def step(self) -> None:
        """Move all of them."""
        for optimizer in self.each.values():
            optimizer.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The states, by name."""
        return {
            f"{name}.{number}.{key}": torch.as_tensor(value)
            for name, optimizer in self.each.items()
            for number, state in optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up what :meth:`tensors` gave."""
        for name, optimizer in self.each.items():
            states: dict[int, dict] = {}
            for key, value in tensors.items():
                of, number, part = key.split(".")
                if of == name:
                    whole = name == "table" and part == "step"  # a number in torch's SparseAdam
                    states.setdefault(int(number), {})[part] = int(value) if whole else value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def write_progress(
    path: Path, model: nn.Module, optimizer: SparseAndDense, losses: list[float]
) -> None:
    """Keep what some epochs have done."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.tensors().items()}
    tensors["rng"] = torch.get_rng_state()
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        with atomic_file(path) as fresh:
            save_file(tensors, fresh, metadata={"losses": json.dumps(losses)})
    except (OSError, SafetensorError) as error:
        logger.warning("%s cannot be written (%s): a stop would lose the epoch", path, error)


def read_progress(path: Path, model: nn.Module, optimizer: SparseAndDense) -> list[float]:
    """Take up what was kept; the losses of the epochs done, none where there is nothing."""
    if not path.is_file():
        return []
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            losses = json.loads(file.metadata()["losses"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s), training begins anew", path, error)
        return []
    torch.set_rng_state(tensors.pop("rng"))
    parts: dict[str, dict] = {"model": {}, "optimizer": {}}
    for name, value in tensors.items():
        of, _, rest = name.partition(".")
        parts[of][rest] = value
    model.load_state_dict(parts["model"])
    optimizer.load(parts["optimizer"])
    logger.info("item embeddings: SASRec goes on after %d epochs", len(losses))
    return losses

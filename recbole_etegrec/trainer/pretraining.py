"""Pretraining of the tokenizer, on items alone."""

import logging
from dataclasses import replace

import torch

from recbole_etegrec.config import Config
from recbole_etegrec.losses import quantization_loss
from recbole_etegrec.model import ETEGRecLlama

logger = logging.getLogger(__name__)


def pretraining_epochs(config: Config, model: ETEGRecLlama) -> int:
    """How many there are: none for a tokenizer that k-means has made already."""
    return config["tokenizer_epochs"] if model.tokenizer.pretrains else 0


def pretraining_epoch(
    model: ETEGRecLlama,
    optimizer: torch.optim.Optimizer,
    *,
    batch_size: int,
    seed: int,
    revive: bool,
) -> dict:
    """Minimise ``L_SQ`` once over the catalogue, in random order.

    Codebooks have been started from k-means when the model was made.

    Args:
        model: its tokenizer is changed, its codes are not.
        batch_size: items a step.
        seed: of this epoch.
        revive: whether codes that no item uses then move to where items are.

    Returns:
        The reconstruction error and the health of the codes.
    """
    tokenizer, embedding = model.tokenizer, model.item_embedding[1:]
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), device=embedding.device)
    for index in torch.randperm(len(embedding), generator=generator).split(batch_size):
        output, _ = tokenizer(embedding[index.to(embedding.device)])
        loss, reconstruction = quantization_loss(output, model.beta)
        optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        optimizer.step()
        total += reconstruction.detach().sum()
    revived = 0
    if revive:
        with torch.no_grad():
            encoded = tokenizer.encoder(embedding)
        revived = tokenizer.quantizer.revive(encoded, generator)
    health = model.codes.health(tokenizer.encode(embedding))
    health = replace(health, reconstruction=float(total) / len(embedding))
    logger.info("tokenizer: %s, revived %d", health, revived)
    return health.record()

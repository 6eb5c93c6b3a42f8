"""Pretraining of the tokenizer, on items alone."""

import logging
from collections.abc import Callable

import torch
from tqdm import tqdm

from recbole_etegrec.losses import quantization_loss
from recbole_etegrec.model import ETEGRecLlama

logger = logging.getLogger(__name__)


def pretrain_tokenizer(
    model: ETEGRecLlama,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    record: Callable[[dict], None],
    show_progress: bool,
) -> None:
    """Minimise ``L_SQ`` over the catalogue, then give every item its codes.

    Codebooks have been started from k-means when the model was made. After each epoch but the
    last, codes that no item uses move to where items are.

    Args:
        model: its tokenizer and codes are changed.
        batch_size: items a step.
        record: takes one record an epoch.
    """
    tokenizer, embedding = model.tokenizer, model.item_embedding[1:]
    generator = torch.Generator().manual_seed(seed)
    tokenizer.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=learning_rate, weight_decay=0.0)
    bar = tqdm(range(epochs), desc="Tokenizer pretraining", disable=not show_progress, ncols=100)
    for epoch in bar:
        total = torch.zeros((), device=embedding.device)
        for index in torch.randperm(len(embedding), generator=generator).split(batch_size):
            output, _ = tokenizer(embedding[index.to(embedding.device)])
            loss, reconstruction = quantization_loss(output, model.beta)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += reconstruction.detach() * len(index)
        error = float(total) / len(embedding)
        revived = 0
        if epoch < epochs - 1:
            with torch.no_grad():
                encoded = tokenizer.encoder(embedding)
            revived = tokenizer.quantizer.revive(encoded, generator)
        health = model.codes.health(tokenizer.encode(embedding))
        record({"phase": "pretraining", "epoch": epoch, "reconstruction": error, **vars(health)})
        bar.set_postfix(reconstruction=f"{error:.4f}", collisions=f"{health.collision_rate:.1%}")
        logger.info("tokenizer %d: error %.4f, %s, revived %d", epoch, error, health, revived)
    tokenizer.requires_grad_(False).eval()
    logger.info("codes: %s", model.rebuild_codes())

"""What becomes of codebooks and codes between epochs."""

import logging
from dataclasses import replace
from typing import Any

from recbole_etegrec.data.item_loader import ItemLoader
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.errors import UserError
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.schedule import Stage

logger = logging.getLogger(__name__)

_COLLAPSED = 0.1  # share of a codebook in use, by perplexity, under which it is warned of


def follow_up(engine: Engine, stage: Stage, loader: SequenceLoader | ItemLoader) -> dict[str, Any]:
    """Do with codebooks and codes what a stage wants after its steps; returns what to record.

    Args:
        loader: what the stage has gone over.
    """
    model, found = engine.model, {}
    if stage.share_codebooks:
        model.copy_codebooks(to="tokenizer")
    if stage.revive:
        found["revived"] = engine.revive_codes(loader.generator)
    if stage.measure_codes:
        health = model.codes.health(model.tokenizer.encode(model.item_embedding[1:]))
        level = logging.DEBUG if stage.revive else logging.INFO  # the last epoch revives none
        logger.log(level, "tokenizer: %s, revived %d", health, found.get("revived", 0))
        found |= health.record()
    if stage.rebuild_codes:
        found |= _moved_codes(engine, stage)
    return found


def _moved_codes(engine: Engine, stage: Stage) -> dict[str, Any]:
    """Give all items new codes after training that began with codes that told them apart.

    Raises:
        UserError: it has moved the codebooks so that the codes do not any more.
    """
    try:
        return rebuild_codes(engine, engine.code_slack)
    except UserError as error:
        raise UserError(
            f"{stage.phase}: training has moved the codebooks so far that too many items get the "
            f"same codes: start anew with a lower {' or '.join(stage.rate_keys)}"
        ) from error


def rebuild_codes(engine: Engine, slack: float = 0.0) -> dict[str, Any]:
    """Give all items new codes, the same on every process; returns their health.

    Args:
        slack: by how much others must be nearer for an item to lose the codes that it has.

    Raises:
        UserError: too many items get the same codes.
    """
    model = engine.model
    health = replace(engine.set_codes(slack), **model.fidelity())
    items, code_num = model.n_items - 1, model.codes.code_num
    logger.info(
        "codes: %s; %d of %d items have new ones", health, round(health.changed * items), items
    )
    for level, perplexity in enumerate(health.perplexity):
        if perplexity < _COLLAPSED * code_num <= _COLLAPSED * items:
            logger.warning(
                "codebook %d has collapsed: its items use as many codes as %.1f of equal use "
                "would be (%d there are); lower the learning rates of the tokenizer",
                level,
                perplexity,
                code_num,
            )
    return health.record()

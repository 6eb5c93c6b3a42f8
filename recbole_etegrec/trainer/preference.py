"""What a guarded phase has beside others: the model of before, groups of candidates, limits."""

import logging

from recbole_etegrec.config import Config
from recbole_etegrec.data import SequenceBatch
from recbole_etegrec.errors import UserError
from recbole_etegrec.preference import GroupMaker, Guard, Reference, Signals
from recbole_etegrec.preference.guard import told, wider
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.keeper import Keeper

logger = logging.getLogger(__name__)

_SUMS = "signals"


class Preferences:
    """Draws groups for the steps of a phase, and says when it must end.

    Args:
        config: of the run.
        engine: its model proposes candidates.
        keeper: keeps the model of before.

    Attributes:
        config: with the metrics that limits are about, besides those of the run.
    """

    def __init__(self, config: Config, engine: Engine, keeper: Keeper):
        self.config, self.engine, self.keeper = wider(config), engine, keeper
        self.guard = Guard(
            max_kl=config["preference_max_kl"],
            max_dead=config["preference_max_dead"],
            min_coverage=config["preference_min_coverage"],
            min_recall=config["preference_min_recall"],
        )
        self.signals = Signals(engine.device)
        self.maker: GroupMaker | None = None

    @property
    def before(self) -> dict:
        """The description of the model of before."""
        return self.keeper.before[1]

    def begin(self) -> None:
        """Take the best model so far, which is the present one, for the one of before."""
        self.keeper.keep_before()
        result = self.before["valid_result"]
        if result:
            logger.info("preference: before, %s", told(result, self.engine.model.n_items - 1))
            self.keeper.record({"phase": "before", **result})
        self.take_up()

    def take_up(self) -> None:
        """Have the model of before read again, as when a run goes on.

        Raises:
            UserError: it was not kept.
        """
        if self.keeper.before is None:
            raise UserError(
                f"resume: {self.keeper.run_dir.before} is gone, the model that the phase "
                "'preference' began with: bring it back, or start a new run"
            )
        model, prefix = self.engine.model, "recommender."
        state = {
            name.removeprefix(prefix): tensor
            for name, tensor in self.keeper.before[0].items()
            if name.startswith(prefix)
        }
        model.ranker.take(self.before.get("ranking", {}))
        if self.config["preference"] != "likelihood":
            reference = Reference(model.recommender, state)
            self.maker = GroupMaker(self.config, model, reference)

    # Steps --------------------------------------------------------------------------------------

    def begin_epoch(self, kept: dict) -> None:
        """Forget what was seen, or go on with what :meth:`keep` gave of the same epoch."""
        self.signals = Signals(self.engine.device, kept.get(_SUMS))

    def with_groups(
        self, micro_batches: list[SequenceBatch], share: float, seed: int, *, seen: bool = True
    ) -> list[SequenceBatch]:
        """The micro-batches of a step with candidates for their targets.

        Args:
            share: of the phase that is over.
            seed: of the step, the same on all processes.
            seen: whether the groups count in the record of the epoch.
        """
        signals = self.signals if seen else None
        return [self.maker(batch, share, seed, signals) for batch in micro_batches]

    def keep(self) -> dict:
        """What was seen in the epoch so far, as JSON, for one process; every process takes part."""
        sums = self.engine.sum_over_processes(self.signals.sums)
        return {_SUMS: (sums / self.engine.accelerator.num_processes).tolist()}

    def summary(self) -> dict[str, float]:
        """What was seen in the epoch; every process takes part."""
        if self.maker is None:
            return {}
        return self.signals.summary(self.engine.sum_over_processes(self.signals.sums).tolist())

    # Limits -------------------------------------------------------------------------------------

    def faults(self, result: dict, record: dict) -> list[str]:
        """Which limits the present model passes, by its metrics and the record of its epoch."""
        logger.info("preference: now, %s", told(result, self.engine.model.n_items - 1))
        return self.guard.faults(self.before["valid_result"], result, record)

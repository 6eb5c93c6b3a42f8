"""`recbole-etegrec compare`: one run after the other, and the table after each."""

import logging
import signal
import subprocess
import sys
from collections.abc import Mapping

import yaml

from recbole_etegrec.compare.measures import is_finished, read_measures, write_error
from recbole_etegrec.compare.plan import Plan, Run, make_plan
from recbole_etegrec.compare.table import write_table
from recbole_etegrec.errors import Interrupted, UserError
from recbole_etegrec.run_directory import RunDirectory, start_logging

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def compare(values: Mapping[str, str]) -> str:
    """Run what has not run yet, and return the table.

    Raises:
        UserError: anything the user can mend, before anything runs.
        Interrupted: a signal came; the run it hit, and what follows, are there for the next time.
    """
    plan = make_plan(values)
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out {plan.out}: cannot be written ({error.strerror})") from error
    start_logging(RunDirectory(plan.out), plan.runs[0].config["state"])
    for note in plan.notes:
        logger.info(note)
    for number, run in enumerate(plan.runs, 1):
        where = f"{number}/{len(plan.runs)} {run.path.name}"
        if is_finished(run.path, plan.histories):
            logger.info("%s: has run already", where)
            continue
        logger.info("%s: starts", where)
        _start(run, plan)
        if error := read_measures(run.path).get("error"):
            logger.error("%s: %s", where, error)
        write_table(plan)
    return write_table(plan)


def _start(run: Run, plan: Plan) -> None:
    """Run one worker to its end. In a session of its own it gets each signal once, from here."""
    order = {"config": run.config.inputs, "path": str(run.path), "histories": plan.histories}
    received: list[int] = []

    def forward(number: int, _frame) -> None:
        received.append(number)
        process.send_signal(number)

    process = subprocess.Popen(
        [sys.executable, "-m", "recbole_etegrec.compare.worker"],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    former = {number: signal.signal(number, forward) for number in _SIGNALS}
    try:
        process.communicate(yaml.safe_dump(order, sort_keys=False))
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if received:
        write_table(plan)
        raise Interrupted(
            received[0], f"stopped in {run.path}; the same command goes on, {plan.out} has the rest"
        )
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        write_error(run.path, f"ended by {name}; SIGKILL is often for want of memory")

"""`recbole-etegrec compare`: one run after the other, or several at a time, and their table."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from queue import SimpleQueue
from typing import NamedTuple

import torch
import yaml

from recbole_etegrec.compare.measures import is_finished, read_measures, write_error
from recbole_etegrec.compare.plan import Plan, PlannedRun, make_plan
from recbole_etegrec.compare.table import COMPARISON, write_table
from recbole_etegrec.errors import Interrupted, UserError
from recbole_etegrec.storage.lock import held_folder, refuse_held, strangers
from recbole_etegrec.storage.logs import start_logging
from recbole_etegrec.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Compared(NamedTuple):
    """What a comparison has come to.

    Attributes:
        table: as Markdown.
        failed: the names of the runs that did not finish.
    """

    table: str
    failed: list[str]


def compare(values: Mapping[str, str]) -> Compared:
    """Run what has not run yet.

    Raises:
        UserError: anything the user can mend, before anything runs.
        Interrupted: a signal came; the run it hit, and what follows, are there for the next time.
    """
    plan = make_plan(values)
    with _held(plan):
        for run in plan.runs:  # a worker lives on where the comparison that began it was killed
            refuse_held(run.path, f"run_dir {run.path}")
        write_table(plan)  # what marks the folder as a comparison's
        table = _compare(plan)
        finished = {run.path for run in plan.runs if is_finished(run.path, plan.histories)}
    return Compared(table, [run.path.name for run in plan.runs if run.path not in finished])


@contextmanager
def _held(plan: Plan) -> Iterator[None]:
    """Hold the folder of a comparison; it is made where there is none.

    Raises:
        UserError: another process holds it, it cannot be written, or it has files and none that
            says that they are a comparison's.
    """
    out, named = plan.out, f"out {plan.out}"
    try:
        found = sorted({*strangers(out)} - {run.path.name for run in plan.runs})
        if found and not (out / COMPARISON).is_file():
            raise UserError(
                f"{named}: holds files that are no comparison's ({', '.join(found[:5])}); "
                "choose another out"
            )
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{named}: cannot be written ({error.strerror})") from error
    with held_folder(out, named):
        yield


def _compare(plan: Plan) -> str:
    """Do the runs that are not finished; returns the table."""
    start_logging(RunDirectory(plan.out), plan.runs[0].config["state"])
    for note in plan.notes:
        logger.info(note)
    waiting = [run for run in plan.runs if not is_finished(run.path, plan.histories)]
    logger.info(
        "%d runs, %d of them finished already", len(plan.runs), len(plan.runs) - len(waiting)
    )
    _Workers(plan).work(waiting)
    return write_table(plan)


class _Workers:
    """Processes that each do one run, `plan.jobs` at a time, spread over the GPUs there are."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.devices: SimpleQueue[str | None] = SimpleQueue()
        visible = visible_gpus() if plan.runs[0].config["use_gpu"] else []
        for slot in range(plan.jobs):
            self.devices.put(visible[slot % len(visible)] if visible else None)
        self.processes: set[subprocess.Popen] = set()
        self.received: list[int] = []

    def work(self, runs: list[PlannedRun]) -> None:
        """Do runs; the table is written after each.

        Raises:
            Interrupted: by a signal, which all workers were sent.
        """
        former = {number: signal.signal(number, self._forward) for number in _SIGNALS}
        try:
            with ThreadPoolExecutor(self.plan.jobs) as pool:
                for done in as_completed(pool.submit(self._do, run) for run in runs):
                    done.result()
                    write_table(self.plan)
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
        if self.received:
            write_table(self.plan)
            raise Interrupted(
                self.received[0], f"stopped; the same command goes on, {self.plan.out} has the rest"
            )

    def _forward(self, number: int, _frame) -> None:
        self.received.append(number)
        for process in tuple(self.processes):
            process.send_signal(number)

    def _do(self, run: PlannedRun) -> None:
        """Run one worker to its end; why it failed, if it did, is noted in its directory."""
        if self.received:
            return
        device = self.devices.get()
        try:
            logger.info("%s: starts", run.path.name)
            code = self._finish(run, device)
        finally:
            self.devices.put(device)
        if code < 0 and not self.received:
            name = signal.Signals(-code).name
            write_error(run.path, f"ended by {name}; SIGKILL is often for want of memory")
        if error := read_measures(run.path).get("error"):
            logger.error("%s: %s", run.path.name, error)
        elif code and not self.received:
            logger.error("%s: ended with exit code %d", run.path.name, code)
        elif not self.received:
            logger.info("%s: finished", run.path.name)

    def _finish(self, run: PlannedRun, device: str | None) -> int:
        order = {
            "config": run.config.inputs,
            "path": str(run.path),
            "histories": self.plan.histories,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "recbole_etegrec.compare.worker"],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a signal of the terminal comes once, from here
            env=worker_environment(self.plan.jobs, device),
        )
        self.processes.add(process)
        if self.received:  # while it was being started
            process.send_signal(self.received[0])
        process.communicate(yaml.safe_dump(order, sort_keys=False))
        self.processes.discard(process)
        return process.returncode


def worker_environment(jobs: int, device: str | None) -> dict[str, str]:
    """The environment of one of several workers: its GPU, and its share of the CPU's cores.

    Threads of more workers than there are cores would wait for each other. Whoever has set their
    number is not overruled.
    """
    environment = dict(os.environ)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    if jobs > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        environment.setdefault("OMP_NUM_THREADS", str(max((cores or 1) // jobs, 1)))
    return environment


def visible_gpus() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES knows the GPUs that this process may use."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(number) for number in range(torch.cuda.device_count())]

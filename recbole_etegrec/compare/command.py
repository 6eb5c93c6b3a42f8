"""`recbole-etegrec compare`: one run after the other, or several at a time, and their table."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue

import torch
import yaml

from recbole_etegrec.compare.measures import is_finished, read_measures, write_error
from recbole_etegrec.compare.plan import Plan, PlannedRun, make_plan
from recbole_etegrec.compare.table import write_table
from recbole_etegrec.errors import Interrupted, UserError
from recbole_etegrec.storage.logs import start_logging
from recbole_etegrec.storage.run_directory import RunDirectory

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
        visible = _visible_gpus() if plan.runs[0].config["use_gpu"] else []
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


def _visible_gpus() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES knows the GPUs that this process may use."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(number) for number in range(torch.cuda.device_count())]

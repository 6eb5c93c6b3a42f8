"""How many requests a server answers, and how fast, on this machine.

    python -m tests.benchmarks.serve [RUN_DIR] [--requests=10000] [--clients 8 32] [--json=FILE]
        [--KEY=VALUE]

The server runs in a process of its own, on a loopback port. Without a RUN_DIR it serves a model of
default size that was trained on ml-100k for one epoch, in a temporary folder: speed does not depend
on what it has learned. Clients each ask again when they are answered, for the 10 best items after
a random history of 1 to 50 items. One client comes first, with a tenth of the requests: its
requests are ranked one by one. Keys are for the server, as `--record_searches=True` on a GPU.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import psutil

TRAINED = {"epochs": 0, "finetune_epochs": 1, "tokenizer_epochs": 5, "show_progress": False}
COLUMNS = ("clients", "requests", "errors", "seconds", "a second", "batch", "p50 ms", "p99 ms")
COLUMNS += ("MiB before", "MiB after")
MAIN = "import sys; from recbole_etegrec.cli import main; sys.exit(main())"


def train(folder: str) -> str:
    """The directory of a run of default size, which has learned little."""
    from recbole_etegrec.quick_start import run

    values = {**TRAINED, "run_dir": f"{folder}/run", "embedding_cache": f"{folder}/cache"}
    return run("ETEGRecLlama", "ml-100k", config_dict=values)["run_dir"]


async def measure(address: str, server: psutil.Process, clients: int, requests: int) -> dict:
    """What one number of clients sees of all its requests."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(
        base_url=address, limits=limits, timeout=60, trust_env=False
    ) as client:
        found = (await client.get("/items", params={"limit": 100})).json()["items"]
        tokens = [item["item"] for item in found]
        chance, bodies = random.Random(clients), []
        for _ in range(requests):
            bodies.append({"history": chance.choices(tokens, k=chance.randint(1, 50))})
        times, statuses = [], []

        async def ask_on() -> None:
            while bodies:
                started = time.perf_counter()
                response = await client.post("/recommend", json=bodies.pop())
                times.append(time.perf_counter() - started)
                statuses.append(response.status_code)

        counts = await batches(client)
        before, started = server.memory_info().rss, time.perf_counter()
        await asyncio.gather(*(ask_on() for _ in range(clients)))
        seconds = time.perf_counter() - started
        asked, ranked = np.subtract(await batches(client), counts)
    values = (clients, requests, sum(status != 200 for status in statuses), seconds)
    values += (requests / seconds, asked / ranked)
    values += (*np.percentile(times, [50, 99]) * 1000, before / 2**20)
    return dict(zip(COLUMNS, (*values, server.memory_info().rss / 2**20), strict=True))


async def batches(client: httpx.AsyncClient) -> tuple[float, float]:
    """Requests that were ranked, and batches."""
    lines = (await client.get("/metrics")).text.splitlines()
    counts = dict(line.rsplit(" ", 1) for line in lines)
    return float(counts["etegrec_batch_size_sum"]), float(counts["etegrec_batch_size_count"])


def serve(run_dir: str, clients: list[int], requests: int, keys: Sequence[str] = ()) -> list[dict]:
    """Start a server, measure it with each number of clients, and end it."""
    command = [sys.executable, "-c", MAIN, "serve", run_dir, "--port=0", *keys]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            address = line.split(" on ")[1].split()[0]
            server = psutil.Process(process.pid)
            asyncio.run(measure(address, server, 4, 100))  # to warm up
            plan = [(1, requests // 10), *((number, requests) for number in clients)]
            return [asyncio.run(measure(address, server, *each)) for each in plan]
        finally:
            process.terminate()


def table(results: list[dict]) -> str:
    """A row for each number of clients."""
    lines = ["".join(f"{name:>12}" for name in COLUMNS)]
    for result in results:
        lines.append("".join(f"{result[name]:12.{_digits(result[name])}f}" for name in COLUMNS))
    return "\n".join(lines)


def _digits(value: float) -> int:
    return 0 if float(value).is_integer() else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run_dir", nargs="?")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--json", type=Path)
    arguments, keys = parser.parse_known_args()
    logging.getLogger("httpx").setLevel("WARNING")
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        run_dir = arguments.run_dir or train(folder)
        results = serve(run_dir, arguments.clients, arguments.requests, keys)
    sys.stdout.write(f"{os.cpu_count()} CPU cores, load before {busy:.1f}\n{table(results)}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

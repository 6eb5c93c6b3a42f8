"""One loaded decoder, the rows that are measured with it, and the file they are written to."""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from accelerate import PartialState
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from recbole_etegrec.config import Config
from recbole_etegrec.config.compat import versions
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.preflight.memory_plan import GIB, MemoryPlan
from recbole_etegrec.runs.parts import load_data
from recbole_etegrec.runs.tasks import give_tasks
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer.engine import Engine
from tests.benchmarks.gpu.measure import clear, copy_rate, limit_memory, matmul_rates

SMALL_CARD, LARGE_CARD = "llama2_7b_rtx5090", "llama2_7b_h200"
EMBEDDING_WIDTH = 256


class Bench:
    """One loaded decoder, the rows measured with it, and where they are written.

    Args:
        options: ``rehearse`` and ``out``, of the command line.
        values: of the configurations.
        folder: with the weights.
    """

    def __init__(self, options: argparse.Namespace, values: dict, folder: str):
        self.rehearse, self.out = options.rehearse, options.out
        self.rows, self.plans = [], {}
        # Beams are what is timed, and the first design knows no items at the input.
        beams = {"ranking": "beam", "item_input": False}
        self.values, self.folder = {**values, **beams, "base_model": folder}, folder
        self.base = self.config(SMALL_CARD)
        self.device, self.main = self.base["device"], PartialState().is_main_process
        sizes = (256, 512) if self.rehearse else (4096, 8192, 12288, 16384)
        rates = matmul_rates(self.device, sizes)
        self.matmul_rate = max(rates.values())
        self.copy_rate = copy_rate(self.device, 2**20 if self.rehearse else 4 * GIB)
        on_gpu = self.device.type == "cuda"
        self.facts = {
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "processes": PartialState().num_processes,
            "versions": versions(),
            "matmul_tflops": {size: rate / 1e12 for size, rate in rates.items()},
            "copy_gb_per_second": self.copy_rate / 1e9,
        }
        self.say(json.dumps(self.facts))

    def config(self, overlay: str, **changes) -> Config:
        """The configuration of an overlay with the weights that were written."""
        return Config("ETEGRecLlama", None, [overlay], {**self.values, **changes})

    def loaders(self, config: Config) -> tuple:
        """For training, validation and test."""
        loaders = load_data(config)[1]
        give_tasks(config, loaders[0])
        return loaders

    def plan_of(self, config: Config) -> MemoryPlan:
        """The memory plan of a configuration, made once."""
        keys = ("max_tokens", "task_tokens", "gradient_checkpointing", "eval_batch_size")
        key = tuple(config[k] for k in keys)
        if key not in self.plans:
            self.plans[key] = MemoryPlan(config, self.loaders(config)[0], EMBEDDING_WIDTH)
        return self.plans[key]

    @cached_property
    def model(self) -> ETEGRecLlama:
        """Both overlays describe the same one; its codes are from random embeddings."""
        dataset = self.loaders(self.base)[0]._dataset
        embedding = torch.randn(
            dataset.item_num, EMBEDDING_WIDTH, generator=torch.Generator().manual_seed(0)
        )
        return ETEGRecLlama(self.base, dataset, embedding).to(self.device)

    @cached_property
    def engine(self) -> Engine:
        """Takes steps of the model, whatever their size."""
        started = time.perf_counter()
        engine = Engine(self.base, self.model, RunDirectory(self.folder))
        engine.match_scale(self.loaders(self.base)[0].first_part())
        engine.freeze_all_but("recommender")
        for group in engine.bare_optimizer("recommender").param_groups:
            group["lr"] = self.base["learning_rate"]
        self.record("load", "decoder", {"wall_seconds": time.perf_counter() - started})
        return engine

    def steps(self, number: int) -> int:
        """So many, or as few as a rehearsal needs."""
        return 1 if self.rehearse else number

    def say(self, line: str) -> None:
        """Print a line at once, on the main process."""
        if self.main:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def record(self, section: str, name: str, figures: dict) -> None:
        """Print a row and write all there are."""
        self.rows.append({"section": section, "name": name, **figures})
        shown = (f"{key} {_short(value)}" for key, value in figures.items() if value is not None)
        self.say(f"{section:9}{name:48}" + "  ".join(shown))
        if self.out and self.main:
            fresh = self.out.with_suffix(".tmp")
            fresh.write_text(json.dumps({**self.facts, "rows": self.rows}, indent=1) + "\n")
            fresh.replace(self.out)

    def measure(self, section: str, name: str, work: Callable[[], dict]) -> None:
        """A row of what some work finds, of its seconds, or of the error that ends it."""
        clear(self.device)
        started = time.perf_counter()
        try:
            figures = work()
        except Exception as error:  # other rows are measured all the same
            figures = {"error": in_short(error)}
            if "engine" in vars(self):
                self.engine.bare_optimizer("recommender").zero_grad()
        finally:
            limit_memory(self.device, None)
        self.record(section, name, {**figures, "wall_seconds": time.perf_counter() - started})

    def find(self, section: str, name: str, key: str) -> float | None:
        """A figure of an earlier row, if there is one."""
        rows = (row for row in self.rows if (row["section"], row["name"]) == (section, name))
        return next((row.get(key) for row in rows), None)


def write_random_weights(
    shape: dict, folder: str, device: torch.device, *, texts: bool = False
) -> None:
    """A directory as `from_pretrained` wants it, in bf16.

    Args:
        texts: whether there are a head and a tokenizer, of which each token is a byte.
    """
    kind = AutoModelForCausalLM if texts else AutoModel
    with device:
        model = kind.from_config(AutoConfig.for_model(**shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    if texts:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    clear(device)


def in_short(error: Exception) -> str:
    """The type of an error, its first line, and the last line of ours that led to it."""
    reason = str(error).strip() or "no reason given"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename]
    place = f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}: {reason.splitlines()[0][:300]}{place}"


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""How much memory a run will take, found before it starts and without any weights.

The model's own code runs one step and one evaluation batch on tensors that have a shape and a type
but no data, and every byte that is alive is counted. So the plan holds for any architecture, and
knows nothing of its layers. What kernels allocate for themselves is not seen.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import PartialState
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from recbole_etegrec.config import Config
from recbole_etegrec.config.checks import launched_with
from recbole_etegrec.data import Group, SequenceBatch
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.data.tasks.loader import TaskLoader
from recbole_etegrec.decoding import encode_batch
from recbole_etegrec.errors import UserError
from recbole_etegrec.losses import OBJECTIVES
from recbole_etegrec.model import MODELS
from recbole_etegrec.preflight.memory_trace import AliveBytes, without_data
from recbole_etegrec.recommender import autocast
from recbole_etegrec.recommender.backbone import cached_tensors, checkpoint_activations
from recbole_etegrec.trainer.schedule import phases_of

GIB = 2**30
_EIGHT_BIT_FROM = 4096  # elements; bitsandbytes keeps the states of smaller tensors in fp32
_NF4_BYTES = 0.5 + (1 + 4 / 256) / 64  # a weight, with its share of the doubly quantized scales
_MOST_MICRO_BATCHES = 1024


@dataclass(frozen=True)
class Training:
    """Bytes of a training step.

    Attributes:
        checkpointing: whether activations are computed anew in the backward pass.
        micro_batches: of the step on each process.
        rows: sequences of the largest micro-batch.
        tokens: tokens of each, padding included.
        activations: what a forward and backward pass hold at most, gradients among it.
        total: all that is alive at the worst moment.
    """

    checkpointing: bool
    micro_batches: int
    rows: int
    tokens: int
    activations: int
    total: int


@dataclass(frozen=True)
class Evaluation:
    """Bytes of an evaluation batch.

    Attributes:
        users: of the batch.
        history: keys and values of a user's longest history.
        total: all that is alive at the worst moment.
    """

    users: int
    history: int
    total: int


class MemoryPlan:
    """The memory of a run, on each of its processes.

    Args:
        config: of the run.
        train_data: the training loader; it is left split as the config says.
        semantic_hidden_size: width of the item embeddings.
        content_width: width of the items' content; 0: there is none.
    """

    def __init__(
        self,
        config: Config,
        train_data: SequenceLoader,
        semantic_hidden_size: int,
        content_width: int = 0,
    ):
        self.config, self.train_data = config, train_data
        self.processes = PartialState().num_processes
        self.on_gpu = config["device"].type == "cuda" or config["memory_gib"] is not None
        dataset = train_data._dataset
        self.longest = min(config["MAX_ITEM_LIST_LENGTH"], train_data.longest + 1)
        self.candidates = _candidates(config)
        if dataset.item_num - 1 > config["code_num"] ** config["code_length"]:
            raise UserError(
                f"code_num ({config['code_num']}) and code_length ({config['code_length']}) make "
                f"too few tuples for {dataset.item_num - 1} items: raise one of them"
            )
        embedding = torch.empty(dataset.item_num, semantic_hidden_size, device="meta")
        content = torch.empty(dataset.item_num, content_width, device="meta")
        self.model = MODELS[config["model"]](
            config, dataset, embedding, content if content_width else None
        )
        self.model.tokenizer.requires_grad_(False)
        self.model.codes.set_table(_spread_codes(self.model.codes.table, config["code_num"]))
        self.model.ranker.prepare()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self.mode:
            without_data(self.model)
            self.model.take_items(self.model.item_embedding, self.model.item_content)
        self.weights = {name: sum(map(_bytes, ts)) for name, ts in self._groups().items()}
        self.passing = 0  # what is there while its layer computes alone
        if config["tuning"] == "qlora":
            linear = [_bytes(m.weight) for m in _linears(self.model.recommender.backbone)]
            element = self.model.recommender.residual_dtype.itemsize
            self.weights["decoder, frozen"] -= round(sum(linear) * (1 - _NF4_BYTES / element))
            self.passing = max(linear)
        learns = [p for p in self.model.recommender.parameters() if p.requires_grad]
        tokenizer = list(self.model.tokenizer.parameters())
        self.gradients = sum(map(_bytes, learns))
        if "preference" in config["schedule"]:
            self.weights["model of before"] = self.gradients
        self.optimizer = sum(_adam_bytes(p, config["optimizer"]) for p in learns)
        self.optimizer += sum(_adam_bytes(p, "adamw") for p in tokenizer)
        # AdamW on a GPU handles all tensors at once, with a temporary copy of them.
        self.update = self.gradients if self.on_gpu else max(map(_bytes, learns))
        # Gradients are summed over processes in buckets, beside themselves.
        self.buckets = self.gradients if self.processes > 1 else 0
        if launched_with("FSDP"):
            self._shard()
        self.training = self.training_of(config["gradient_checkpointing"])
        self.evaluation = self.evaluation_of(min(config["eval_batch_size"], dataset.user_num - 1))

    def _groups(self) -> dict[str, list[torch.Tensor]]:
        model, recommender = self.model, self.model.recommender
        backbone = recommender.backbone
        frozen = [p for p in backbone.parameters() if not p.requires_grad]
        heads = [head for head in recommender.heads if head is not recommender.text]
        groups = {
            "decoder, frozen": [*frozen, *backbone.buffers()],
            "decoder, learning": [p for p in backbone.parameters() if p.requires_grad],
            "heads": [p for head in heads for p in head.parameters()],
            "tokenizer and items": [
                *model.tokenizer.parameters(),
                *model.tokenizer_of_record.buffers(),
                *model.codes.parameters(),
                model.item_embedding,
                *([] if model.item_content is None else [model.item_content]),
                model.codes.table,
            ],
        }
        if recommender.text is not None:
            groups["token table and its head"] = list(recommender.text.parameters())
        if self.config["tuning"] in ("lora", "qlora"):
            groups["adapters (LoRA)"] = groups.pop("decoder, learning")
        return groups

    def _shard(self) -> None:
        """Count a process's share of the decoder (FSDP), and two of its layers gathered whole."""
        backbone = self.model.recommender.backbone
        for name in self.weights:
            if name.startswith(("decoder", "adapters")):
                self.weights[name] //= self.processes
        learns = [p for p in backbone.parameters() if p.requires_grad]
        spared = 1 - 1 / self.processes
        self.gradients -= round(spared * sum(map(_bytes, learns)))
        kind = self.config["optimizer"]
        self.optimizer -= round(spared * sum(_adam_bytes(p, kind) for p in learns))
        self.update = self.buckets = self.gradients
        lists = (m for m in backbone.modules() if isinstance(m, nn.ModuleList))
        layers = [sum(map(_bytes, layer.parameters())) for layers in lists for layer in layers]
        self.passing = 2 * max(layers)

    # What is planned ----------------------------------------------------------------------------

    def training_of(self, checkpointing: bool, micro_batches: int | None = None) -> Training:
        """A step with other knobs.

        Args:
            micro_batches: in place of the config's ``gradient_accumulation_steps``.
        """
        micro_batches = micro_batches or self.config["gradient_accumulation_steps"]
        self.train_data.split(micro_batches, self.processes)
        batch = self.train_data.largest_micro_batch()
        self.train_data.split(self.config["gradient_accumulation_steps"], self.processes)
        passes = min(batch.micro_batches // self.processes, 2)
        activations = max(
            self._trace(lambda each=each: self._step(each, checkpointing, passes))
            for each in (batch, *self._tasks_alone(micro_batches))
        )
        static = sum(self.weights.values()) + self.optimizer + self.buckets
        total = static + max(activations + self.passing, self.gradients + self.update)
        rows, items = batch.items.shape
        tokens = items * self.config["code_length"]
        return Training(checkpointing, micro_batches, rows, tokens, activations, total)

    def evaluation_of(self, users: int) -> Evaluation:
        """An evaluation batch of other size."""
        peak = self._trace(lambda: self._rank(users))
        total = sum(self.weights.values()) + self.optimizer + peak + self.passing
        return Evaluation(users, self._history_bytes(), total)

    def _tasks_alone(self, micro_batches: int) -> Iterator[SequenceBatch]:
        """A micro-batch of the phase of tasks, where there is one."""
        if self.train_data.tasks is not None and "tasks" in self.config["schedule"]:
            loader = TaskLoader(self.train_data.tasks)
            loader.split(micro_batches, self.processes)
            yield next(loader.iterate())[0]

    def _step(self, batch: SequenceBatch, checkpointing: bool, passes: int) -> None:
        model = self.model
        checkpoint_activations(model.recommender.backbone, checkpointing)
        model.recommender.train()
        stages = (stage for phase in phases_of(self.config) for stage in phase.stages)
        parts = [p for stage in stages for p in stage.parts if p.trains == "recommender"]
        names = dict.fromkeys(name for part in parts for name in part.weights)
        if not len(batch.targets):
            names = [name for name in names if OBJECTIVES[name].part == "tasks"]
        if not names:
            return
        if any(part.reads_groups for part in parts):
            batch = batch._replace(group=self._group(len(batch.items)))
        for _ in range(passes):
            recommender = autocast(self.config["precision"], "cpu")(model.recommender)
            losses = model.losses(names, batch, recommender)
            sum(losses.values()).backward()
        model.zero_grad()

    def _group(self, rows: int) -> Group:
        """Candidates for a target of each row, of which no two share a prefix."""
        count, config = self.config["preference_group"], self.config
        if config["preference_disliked"] is not None:
            count += config["preference_negatives"]
        items = torch.ones(rows, count, dtype=torch.long)
        return Group(
            items,
            after=torch.ones(rows, dtype=torch.long),
            advantages=torch.ones(rows, count),
            reference=torch.zeros(rows, count, config["code_length"]),
            real=torch.ones(rows, dtype=torch.bool),
            each_step=rows,
        )

    @torch.no_grad()
    def _rank(self, users: int) -> None:
        # In training a model forgets what it has made to rank with.
        ranker, batch = self.model.train().eval().ranker, self._longest_histories(users)
        with autocast(self.config["precision"], "cpu"):
            if self.candidates > 1:
                ranker.score(batch, torch.ones(users, self.candidates, dtype=torch.long))
            else:
                ranker.rehearse(batch)

    @torch.no_grad()
    def _history_bytes(self) -> int:
        """Bytes of the keys and values of a user's longest history."""
        model = self.model.eval()
        with self.mode, autocast(self.config["precision"], "cpu"):
            batch = self._longest_histories(1)
            history = encode_batch(model.recommender, model.codes, model.fields, batch)
            return sum(map(_bytes, cached_tensors(history.cache)))

    def _longest_histories(self, users: int) -> dict[str, Any]:
        """A batch; its lengths are numpy's, for a tensor without data has no largest value."""
        fields = self.model.fields
        return {
            fields.history: torch.zeros(users, self.longest, dtype=torch.long),
            fields.length: np.full(users, self.longest),
        }

    def _trace(self, work: Callable[[], None]) -> int:
        """The most bytes alive at once during some work, parameters and buffers not counted."""
        with self.mode, AliveBytes(_tensors(self.model), self.on_gpu) as alive:
            work()
        return alive.peak

    # What is said -------------------------------------------------------------------------------

    def __str__(self) -> str:
        config, now, ranks = self.config, self.training, self.evaluation
        lines = [(name, size, "") for name, size in self.weights.items() if size]
        lines += [
            ("gradients", self.gradients, ""),
            (f"optimizer ({config['optimizer']})", self.optimizer, ""),
        ]
        for checkpointing in (False, True):
            other = self.training_of(checkpointing) if checkpointing != now.checkpointing else now
            used = "" if other is now else f"not chosen: {_readable(other.total)} in all"
            how = "checkpointed" if checkpointing else "kept"
            lines.append((f"activations, {how}", other.activations, used))
        step = f"a micro-batch of {now.rows} x {now.tokens} tokens, {now.micro_batches} a step"
        lines.append(("training, at its peak", now.total, step))
        each = f"{ranks.users} users, {ranks.history / 2**20:.1f} MiB each"
        lines.append(("cache of histories", ranks.users * ranks.history, each))
        lines.append(("evaluation, at its peak", ranks.total, ""))
        if (limit := memory_limit(config)) is not None:
            lines.append(("memory there is", limit, str(config["device"])))
        return "\n".join(
            f"  {name:26}{_readable(size):>12}  {note}".rstrip() for name, size, note in lines
        )

    def check(self) -> None:
        """Refuse a run that does not fit, with a value of a knob that would make it fit.

        Raises:
            UserError: it does not fit.
        """
        limit = memory_limit(self.config)
        if limit is None:
            return
        if self.training.total > limit:
            raise UserError(
                f"{_too_much('training', self.training.total, limit)}: {self._training_knob(limit)}"
            )
        if self.evaluation.total > limit:
            for users in _halved(self.evaluation.users):
                if self.evaluation_of(users).total <= limit:
                    knob = f"set eval_batch_size to {users}"
                    break
            else:
                knob = "lower num_beams, candidates or MAX_ITEM_LIST_LENGTH"
            raise UserError(f"{_too_much('evaluation', self.evaluation.total, limit)}: {knob}")

    def _training_knob(self, limit: int) -> str:
        """The first change, in order of its cost, that makes training fit."""
        now = self.training
        if not now.checkpointing and self.training_of(True).total <= limit:
            return "set gradient_checkpointing to True"
        micro_batches = now.micro_batches * 2
        while micro_batches <= _MOST_MICRO_BATCHES:
            smaller = self.training_of(True, micro_batches)
            if smaller.total <= limit:
                also = "" if now.checkpointing else "gradient_checkpointing to True and "
                return f"set {also}gradient_accumulation_steps to {micro_batches}"
            if smaller.rows == 1:
                break
            micro_batches *= 2
        base, tuning = self.config["base_model"], self.config["tuning"]
        if not base:
            return "lower hidden_size, num_hidden_layers or MAX_ITEM_LIST_LENGTH"
        if tuning == "full":
            return "set tuning to lora, or take a smaller base_model"
        spared = self.weights["decoder, frozen"]
        spared -= spared * _NF4_BYTES / self.model.recommender.residual_dtype.itemsize
        can = tuning == "lora" and not base.endswith(".gguf") and not launched_with("FSDP")
        if can and self.training_of(True, micro_batches).total - spared <= limit:
            return f"set tuning to qlora and gradient_accumulation_steps to {micro_batches}"
        return "take a smaller base_model, or lower MAX_ITEM_LIST_LENGTH"


def memory_limit(config: Config) -> int | None:
    """Bytes that a process may take: ``memory_gib``, or what its device has; None if unknown."""
    if config["memory_gib"]:
        return int(config["memory_gib"] * GIB)
    device = config["device"]
    if device.type == "cuda":
        # What is free, and what torch holds of it already.
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type == "cpu":
        return psutil.virtual_memory().available // PartialState().num_processes
    return None


def _linears(backbone: nn.Module) -> list[nn.Linear]:
    """The linear layers of a decoder that are quantized: all but those of adapters."""
    return [
        module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    ]


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _candidates(config: Config) -> int:
    """Items that are scored for a user in sampled evaluation, at most; 1 where all are ranked."""
    modes = config["eval_args"]["mode"].values()
    sampled = [re.fullmatch(r"(?:uni|pop)(\d+)", mode) for mode in modes]
    return 1 + max((int(match[1]) for match in sampled if match), default=0)


def _spread_codes(table: torch.Tensor, code_num: int) -> torch.Tensor:
    """Full code tuples for the items of a table, as evenly spread as codes can be."""
    rest, levels = torch.arange(len(table) - 1), []
    for _ in range(table.shape[1]):
        levels.append(rest % code_num)
        rest = rest // code_num
    return torch.stack(levels, dim=1)


def _readable(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.2f} MiB"


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _adam_bytes(parameter: nn.Parameter, optimizer: str) -> int:
    """Bytes of Adam's two states of a parameter, on the device."""
    if optimizer == "paged_adamw_8bit":
        return 0  # they give way to whatever else needs the memory
    if optimizer == "adamw_8bit" and parameter.numel() >= _EIGHT_BIT_FROM:
        return 2 * parameter.numel()
    return 2 * _bytes(parameter)


def _halved(number: int) -> Iterator[int]:
    while number > 1:
        number //= 2
        yield number


def _too_much(what: str, needs: int, limit: int) -> str:
    return f"memory_gib ({limit / GIB:.1f}) is too little for {what} ({needs / GIB:.1f})"

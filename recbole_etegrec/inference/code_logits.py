"""What generates items with a plain LLaMA that was exported: it keeps to codes of real items.

An export of the format ``hf`` has this file beside the weights: it needs torch, and transformers
where its `generate` is used, and nothing of this package.

The vocabulary: 0 is padding, ``1 + l C + k`` code ``k`` of level ``l``, and after the codes of all
levels, where the model reads items at their last code, a token for each item. A history is the
codes of its items one after another; where there are tokens of items, an item's stands in the
place of its last code. The next ``L`` tokens are the codes of the next item.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


class CodeLogits:
    """Normalises logits within the level to be generated, and keeps the codes that real items have.

    Args:
        codes: of each item ``[N][L]``; None stands for an item that is not to be generated.
        code_num: codes a level ``C``.
        names: a token of each item in the data.
        reads_items: whether histories have tokens of items.
    """

    def __init__(
        self,
        codes: Sequence[Sequence[int] | None],
        code_num: int,
        names: Sequence[str],
        reads_items: bool,
    ):
        self.code_num, self.names, self.reads_items = code_num, list(names), reads_items
        self.tokens = [item and [self._token(*pair) for pair in enumerate(item)] for item in codes]
        self.length = len(next(filter(None, codes)))
        self.number = {name: number for number, name in enumerate(self.names)}
        self.item_of = {tuple(item): n for n, item in enumerate(self.tokens) if item}
        after: dict[tuple[int, ...], set[int]] = {}
        for item in self.item_of:
            for level in range(self.length):
                after.setdefault(item[:level], set()).add(item[level])
        self.after = {prefix: torch.tensor(sorted(found)) for prefix, found in after.items()}

    @classmethod
    def of(cls, directory: str | Path) -> "CodeLogits":
        """That of an exported directory."""
        text = Path(directory, "items.json").read_text("utf-8")
        values = json.loads(text)
        read = ("codes", "code_num", "tokens", "reads_items")
        return cls(*(values[name] for name in read))

    def prompt(self, history: Sequence[str]) -> list[int]:
        """Tokens of a history of items, oldest first.

        Raises:
            KeyError: there is no such item.
        """
        found = []
        for name in history:
            number = self.number[name]
            if self.tokens[number] is None:
                raise KeyError(name)
            found += self.tokens[number]
            if self.reads_items:
                found[-1] = 1 + self.length * self.code_num + number
        return found

    def __call__(self, generated: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the next code ``[rows, V]``; -inf where no item has it.

        Args:
            generated: the codes of the next item so far ``[rows, l]``.
            logits: of the whole vocabulary ``[rows, V]``.
        """
        level = generated.shape[1]
        first = self._token(level, 0)
        codes = slice(first, first + self.code_num)
        scores = torch.full_like(logits, -torch.inf, dtype=torch.float32)
        own = logits[:, codes].float().log_softmax(dim=1)
        for row, prefix in enumerate(generated.tolist()):
            allowed = self.after.get(tuple(prefix))
            if allowed is not None:  # else a beam that has ended up nowhere
                allowed = allowed.to(logits.device)
                scores[row, allowed] = own[row, allowed - first]
        return scores

    def _token(self, level: int, code: int) -> int:
        return 1 + level * self.code_num + code


def for_transformers(codes: CodeLogits, prompt_length: int) -> Callable:
    """A processor for ``generate(logits_processor=[...])``; prompts are padded on the left."""
    return lambda ids, scores: codes(ids[:, prompt_length:], scores)


def for_vllm(codes: CodeLogits) -> Callable[[list[int], torch.Tensor], torch.Tensor]:
    """A processor of one request of vLLM: its codes so far and its logits ``[V]``."""
    return lambda output, logits: codes(torch.tensor([output]).view(1, -1), logits[None])[0]


def for_sglang(codes: CodeLogits) -> Callable[[torch.Tensor, list[dict[str, Any]]], torch.Tensor]:
    """The ``__call__`` of a ``CustomLogitProcessor`` of SGLang: ``[rows, V]``, a row a request."""

    def process(logits: torch.Tensor, parameters: list[dict[str, Any]]) -> torch.Tensor:
        rows = [torch.tensor(one["__req__"].output_ids).view(1, -1) for one in parameters]
        return torch.cat([codes(row, logits[n : n + 1]) for n, row in enumerate(rows)])

    return process


@torch.no_grad()
def generate_items(
    model: Any, codes: CodeLogits, histories: Sequence[Sequence[str]], beams: int = 20
) -> list[list[tuple[str, float]]]:
    """The best items after each history and their log-probabilities, by transformers' `generate`.

    Args:
        model: as ``AutoModelForCausalLM.from_pretrained`` gives it, on its device.
        histories: items of each, oldest first; no more of them than the model was trained on.
    """
    prompts = [codes.prompt(history) for history in histories]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    ids = ids.to(model.device)
    beams = min(beams, len(codes.item_of))
    found = model.generate(
        ids,
        attention_mask=(ids > 0).long(),
        max_new_tokens=codes.length,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        length_penalty=0.0,
        logits_processor=[for_transformers(codes, width)],
        output_scores=True,
        return_dict_in_generate=True,
    )
    items = [codes.item_of.get(tuple(row)) for row in found.sequences[:, width:].tolist()]
    scores = found.sequences_scores.tolist()
    return [
        [
            (codes.names[n], s)
            for n, s in zip(items[at : at + beams], scores[at:], strict=False)
            if n is not None and s > -1e8
        ]
        for at in range(0, len(items), beams)
    ]

"""AdamW that moves of a large table only the rows that a step has read."""

from collections.abc import Callable
from typing import Any

import torch


class RowAdamW(torch.optim.AdamW):
    """AdamW, lazy in groups with ``by_rows``: rows without a gradient stay as they are.

    Their moments and the weight decay wait for the next step that reads them, as those of torch's
    `SparseAdam`. So the time of a step does not grow with the table. A gradient may be sparse, or
    dense, where processes have summed it: then rows of zeros count as not read.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """See `torch.optim.AdamW`."""
        kept = []
        for group in self.param_groups:
            for parameter in group["params"] if group.get("by_rows") else ():
                if parameter.grad is not None:
                    self._move_rows(parameter, group)
                    kept.append((parameter, parameter.grad))
                    parameter.grad = None
        loss = super().step(closure)
        for parameter, gradient in kept:
            parameter.grad = gradient
        return loss

    def _move_rows(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> None:
        rows, gradient = rows_of(parameter.grad)
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        skipped = getattr(self, "found_inf", None)  # set where a kernel looks itself
        state["step"] += 1
        (slow, fast), number = group["betas"], float(state["step"])
        first, second = state["exp_avg"][rows], state["exp_avg_sq"][rows]
        new_first = first.lerp(gradient, 1 - slow)
        new_second = second.lerp(gradient.square(), 1 - fast)
        scale = (new_second / (1 - fast**number)).sqrt_().add_(group["eps"])
        values = parameter[rows]
        moved = values * (1 - group["lr"] * group["weight_decay"])
        moved -= group["lr"] / (1 - slow**number) * new_first / scale
        for table, new, old in (
            (parameter, moved, values),
            (state["exp_avg"], new_first, first),
            (state["exp_avg_sq"], new_second, second),
        ):
            table[rows] = new if skipped is None else torch.where(skipped > 0, old, new)


def rows_of(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of a table that have a gradient ``[n]``, and their gradients ``[n, d]``."""
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        return gradient.indices()[0], gradient.values()
    rows = gradient.any(dim=1).nonzero().squeeze(1)
    return rows, gradient[rows]

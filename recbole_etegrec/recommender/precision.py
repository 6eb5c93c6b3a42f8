"""Names of precisions, and the autocast that each stands for."""

import torch

PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def autocast(precision: str, device_type: str) -> torch.autocast:
    """Mixed precision on a kind of device, as a context or a decorator; ``fp32`` turns it off."""
    dtype = PRECISIONS[precision]
    if dtype == torch.float32:
        return torch.autocast(device_type, enabled=False)
    return torch.autocast(device_type, dtype)

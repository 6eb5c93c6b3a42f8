"""What FSDP has to be told of the recommender, whose backbone it shards."""

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from recbole_etegrec.tokenizer import ItemCodes


def keep_whole(plugin: FullyShardedDataParallelPlugin, heads: list[nn.Module]) -> None:
    """Have FSDP leave alone what ranking and code updates read outside `forward`; it is small."""
    plugin.ignored_modules = heads
    plugin.cpu_ram_efficient_loading = False  # it would replace those very parameters
    if plugin.mixed_precision_policy is not None:
        # Gradients are summed, and logits leave the model, in fp32.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=plugin.mixed_precision_policy.param_dtype,
            reduce_dtype=torch.float32,
            output_dtype=torch.float32,
        )


def settle_types(recommender: FSDPModule, codes: ItemCodes) -> None:
    """Have shards settle the types of their gradients while they know what will train.

    They do so in their first pass. It would belong to a stage in which the recommender is frozen,
    and gradients would then stay in the type of the pass.
    """
    items = torch.ones(1, 2, dtype=torch.long, device=codes.table.device)
    with torch.no_grad():
        recommender(codes(items), items[0, :1] - 1, items=items)
    recommender.reshard()  # else what is in no layer waits for a backward pass

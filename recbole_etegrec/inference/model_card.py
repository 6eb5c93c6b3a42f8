"""The model card of an exported model: its data, its configuration and its metrics."""

from pathlib import Path
from typing import Any

import yaml

from recbole_etegrec.config import Config, read_config_files
from recbole_etegrec.data import WholeSequenceDataset
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.storage.run_directory import RunDirectory

_PATHS = {"embedding_cache", "item_embedding_file", "sasrec_run", "distill_from"}  # of one machine


def model_card(
    directory: RunDirectory,
    config: Config,
    model: ETEGRecLlama,
    dataset: WholeSequenceDataset,
    form: str = "own",
) -> str:
    """Write the model card as Markdown, with the front matter of the hub.

    Args:
        form: of the export, ``own`` or ``hf``.
    """
    counts = {
        "users": dataset.user_num - 1,
        "items": model.n_items - 1,
        "interactions": len(dataset.inter_feat),
        "parameters": sum(p.numel() for p in model.recommender.parameters()),
    }
    base = config["base_model"] and Path(config["base_model"]).name
    licence = "The licence of the data"
    if base:
        licence += f" and that of the base model, {base},"
    return _PAGE.format(
        model=config["model"],
        dataset=config["dataset"],
        counts=_table(("", "count"), {name: f"{count:,}" for name, count in counts.items()}),
        metrics=_metrics(directory),
        licence=licence,
        library="transformers" if form == "hf" else "recbole-etegrec",
        use=_USES[form],
        config=yaml.safe_dump(_settings(config), sort_keys=False),
    )


def _metrics(directory: RunDirectory) -> str:
    """Tabulate the metrics of the run's own test and validation."""
    result = directory.read_result()
    if not result:
        return "The run was not finished; there are none.\n"
    found = {"valid": result["best_valid_result"], "test": result["test_result"]}
    rows = {
        name: " | ".join(f"{part[name]:.4f}" for part in found.values()) for name in found["test"]
    }
    table = _table(("metric", "valid | test"), rows)
    if directory.added_items.exists():
        table += "\nMeasured before items were added to the run.\n"
    return table


def _table(head: tuple[str, str], rows: dict[str, str]) -> str:
    rule = "|".join("---" for _ in " | ".join(head).split(" | "))
    lines = [f"| {name} | {values} |" for name, values in rows.items()]
    return "\n".join([f"| {head[0]} | {head[1]} |", f"|{rule}|", *lines]) + "\n"


def _settings(config: Config) -> dict[str, Any]:
    """Collect the keys of the model and of the evaluation, without paths."""
    keys = read_config_files(["overall", "model/ETEGRecLlama"]).keys() - _PATHS
    keys = [key for key in config.inputs if key in keys]
    settings = {key: config.inputs[key] for key in ["seed", *keys]}
    for key in ("base_model", "text_model"):
        if settings[key]:
            settings[key] = Path(settings[key]).name
    return settings


_USES = {
    "own": """\
```python
from recbole_etegrec import ETEGRecModel

model = ETEGRecModel.from_pretrained("DIRECTORY_OR_HUB_ID")
model.recommend([["ITEM", "ITEM"]], k=10)
```

`model.safetensors` holds the weights and the table of codes, `config.json` the architecture, and
`items.json` the items' tokens and titles by id. The dataset is not needed.
""",
    "hf": """\
```python
from transformers import AutoModelForCausalLM
from code_logits import CodeLogits, generate_items  # a file of this directory

model, codes = AutoModelForCausalLM.from_pretrained("DIRECTORY"), CodeLogits.of("DIRECTORY")
generate_items(model, codes, [["ITEM", "ITEM"]], beams=20)
```

This is a plain LLaMA whose vocabulary is the codes of items. `items.json` has the items with their
codes, and `code_logits.py` allows only codes that items have. The model ranks by the codes alone,
as `ranking: beam` does.
""",
}

_PAGE = """\
---
library_name: {library}
tags: [recommender-system, generative-recommendation]
---

# {model} on {dataset}

A generative recommender: each item is a tuple of codes, which the model generates one after
another.

{use}
## Data

{counts}
## Metrics

{metrics}
## Licence

{licence} may restrict what you may use this model for; please check it.

## Training

```yaml
{config}```
"""

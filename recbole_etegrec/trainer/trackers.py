"""TensorBoard and Weights & Biases beside ``metrics.jsonl``, which is complete without them."""

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from recbole_etegrec.config import Config
from recbole_etegrec.storage.run_directory import RunDirectory


def make_trackers(config: Config, run_dir: RunDirectory) -> list[GeneralTracker]:
    """TensorBoard's, in the run directory, and W&B's where RecBole's ``log_wandb`` asks for it."""
    trackers: list[GeneralTracker] = [TensorBoardTracker("tensorboard", run_dir.path)]
    if config["log_wandb"]:
        trackers.append(WandBTracker(config["wandb_project"], config=config.inputs))
    return trackers


def curves(record: dict) -> dict[str, float]:
    """The numbers of a record under one name each, grouped by phase.

    A list becomes one curve an entry, validation metrics become ``valid/<metric>``.
    """
    group = record.get("trains", record.get("phase"))
    found = {}
    for key, value in record.items():
        if key == "valid_result":
            found |= {f"valid/{name}": number for name, number in value.items()}
        elif isinstance(value, list):
            found |= {f"{group}/{key}_{n}": number for n, number in enumerate(value)}
        elif isinstance(value, (int, float)):
            found[f"{group}/{key}"] = value
    return found

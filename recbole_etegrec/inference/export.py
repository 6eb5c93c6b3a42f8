"""A trained model as one directory: what it recommends with, and the names of its items.

It is loaded without the dataset and without a pretrained decoder. It leaves out what only training
and new items need: item embeddings and the tokenizer's encoder and decoder.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from recbole_etegrec.config import Config
from recbole_etegrec.errors import UserError
from recbole_etegrec.inference.catalogue import Catalogue
from recbole_etegrec.inference.model_card import model_card
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.model.build import rebuild_recommender
from recbole_etegrec.model.ranking import RanksItems
from recbole_etegrec.recommender import Recommender
from recbole_etegrec.runs.load import load_run, read_own_config
from recbole_etegrec.storage.atomic import atomic_directory
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.tokenizer import ItemCodes

_WEIGHTS, _CONFIG, _CATALOGUE, _CARD = "model.safetensors", "config.json", "items.json", "README.md"
_FIELDS = ("ITEM_ID", "ITEM_SEQ", "ITEM_SEQ_LEN")
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)
_KEYS = ("model", "dataset", "code_length", "code_num", "codebook_update", "alignment_pooling")
_KEYS += ("backbone", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_size")
_KEYS += ("intermediate_size", "init_std", "dropout", "residual_dropout", "attn_implementation")
_KEYS += ("MAX_ITEM_LIST_LENGTH", "precision", "ranking", "num_beams", "exclude_history")


class ExportedModel(RanksItems, nn.Module):
    """A recommender and its code table, to recommend with.

    Args:
        description: as :func:`export_run` writes it.
    """

    def __init__(self, description: dict[str, Any], recommender: Recommender):
        super().__init__()
        values = description["values"]
        for name in _FIELDS:
            setattr(self, name, description["fields"][name])
        self.n_items = description["n_items"]
        self.max_history = values["MAX_ITEM_LIST_LENGTH"]
        self.precision, self.ranking = values["precision"], values["ranking"]
        self.num_beams = values["num_beams"]
        self.exclude_history = bool(values["exclude_history"])
        self.recommender = recommender
        self.codes = ItemCodes(
            n_items=self.n_items, code_length=values["code_length"], code_num=values["code_num"]
        )


def export_run(run_dir: str, out: str, config_dict: dict[str, Any] | None = None) -> str:
    """Write the model of a finished run, adapters merged, as a directory of its own.

    Args:
        out: the directory, which must not exist or be empty.
        config_dict: overrides keys of the run's config.

    Returns:
        The files with their sizes.

    Raises:
        UserError: `run_dir` is not the directory of a finished run of this plugin, its adapters
            cannot be merged, or `out` cannot be written.
    """
    directory, folder = RunDirectory(run_dir), Path(out).absolute()
    values = read_own_config(directory)
    if values.get("tuning") == "qlora":
        raise UserError(
            "tuning (qlora): its adapters cannot be merged into weights of 4 bits without losing "
            "digits; keep the run itself, or train with lora"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"out: {folder} exists already; name a new directory")
    config, model, dataset, *_ = load_run(run_dir, config_dict)
    if isinstance(model.recommender.backbone, PeftModel):
        model.merge_adapters()
    catalogue = Catalogue.from_dataset(dataset)
    try:
        with atomic_directory(folder) as fresh:
            state = {f"recommender.{k}": v for k, v in model.recommender.state_dict().items()}
            state["codes.table"] = model.codes.table
            save_file({k: v.cpu().contiguous() for k, v in state.items()}, fresh / _WEIGHTS)
            _write_json(fresh / _CONFIG, _description(config, model))
            _write_json(
                fresh / _CATALOGUE, {"tokens": catalogue.tokens, "titles": catalogue.titles}
            )
            card = model_card(directory, config, model, dataset)
            (fresh / _CARD).write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise UserError(f"out: {folder} cannot be written ({error})") from error
    return _sizes(folder)


def load_exported(
    directory: str | Path, device: str | torch.device | None = None
) -> tuple[ExportedModel, Catalogue]:
    """The model in a directory written by :func:`export_run`, and the names of its items.

    Args:
        device: none: the first GPU if there is one.

    Raises:
        UserError: it is not such a directory, or is damaged.
    """
    folder = Path(directory)
    for name in (_WEIGHTS, _CONFIG, _CATALOGUE):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}; is it the directory of an exported model?")
    try:
        description = json.loads((folder / _CONFIG).read_text("utf-8"))
        names = json.loads((folder / _CATALOGUE).read_text("utf-8"))
        titles = dict(zip(names["tokens"], names["titles"], strict=True))
        catalogue = Catalogue(names["tokens"], titles)
        recommender = rebuild_recommender(
            description["values"],
            description["base"],
            getattr(torch, description["dtype"]),
            description["semantic_hidden_size"],
            description["e_dim"],
        )
        model = ExportedModel(description, recommender)
        model.load_state_dict(load_file(folder / _WEIGHTS), assign=True)
        model.codes.build_trie()
        if model.codes.digest() != description["codes"] or len(catalogue) != model.n_items:
            raise ValueError("its codes or items are not those that were exported")
    except (*_BROKEN, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} is damaged ({reason}): export the run again") from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.requires_grad_(False).to(device).eval(), catalogue


def _description(config: Config, model: ETEGRecLlama) -> dict[str, Any]:
    """All that is needed to build the model but its weights."""
    base = None
    if config["base_model"]:
        base = model.recommender.backbone.config.to_dict()
        base.pop("_name_or_path", None)  # a directory of this machine, perhaps
        # The token table is not kept; a row of it stands for it.
        base |= {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    values = {key: config[key] for key in _KEYS}
    if values["attn_implementation"] != "eager":
        values["attn_implementation"] = "sdpa"  # as others are not everywhere
    return {
        "values": values,
        "fields": {name: getattr(model, name) for name in _FIELDS},
        "n_items": model.n_items,
        "semantic_hidden_size": model.item_embedding.shape[1],
        "e_dim": model.recommender.code_embedding.codebooks.shape[-1],
        "base": base,
        "dtype": str(model.recommender.residual_dtype).removeprefix("torch."),
        "codes": model.codes.digest(),
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sizes(folder: Path) -> str:
    files = [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())]
    lines = [f"{name:20}{size / 2**10:12,.1f} KiB" for name, size in files]
    return "\n".join([f"exported to {folder}", *lines]) + "\n"

"""A trained model as one directory: what it recommends with, and the names of its items.

It is loaded without the dataset and without a pretrained decoder. It leaves out what only training
and new items need: item embeddings and the tokenizer's encoder and decoder.
"""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from recbole_etegrec.config import Config, is_ours
from recbole_etegrec.config.models import ENSEMBLE
from recbole_etegrec.decoding import RANKERS, BatchFields, Member, ranking_of
from recbole_etegrec.errors import UserError
from recbole_etegrec.inference.catalogue import Catalogue
from recbole_etegrec.inference.model_card import model_card
from recbole_etegrec.inference.plain_llama import write_plain_llama
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.model.build import ranker_options
from recbole_etegrec.model.ensemble import EnsembleModel
from recbole_etegrec.recommender import RecommenderSpec, empty_recommender
from recbole_etegrec.runs.ensemble import read_members
from recbole_etegrec.runs.load import load_run, read_own_config
from recbole_etegrec.storage.atomic import atomic_directory
from recbole_etegrec.storage.digests import damaged_file, write_checksums
from recbole_etegrec.storage.lock import held_output
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.tokenizer import ItemCodes, UserCodes

_WEIGHTS, _CONFIG, _CATALOGUE, _CARD = "model.safetensors", "config.json", "items.json", "README.md"
EXPORTED = (_WEIGHTS, _CONFIG, _CATALOGUE, "checksums.json", _CARD)
FORMATS = ("own", "hf")
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)


class ExportedModel(nn.Module):
    """A recommender and its code table, to recommend with; see `RankingModel`.

    Args:
        description: as :func:`export_run` writes it.
    """

    def __init__(self, description: dict[str, Any]):
        super().__init__()
        self.spec = RecommenderSpec(**description["recommender"])
        self.fields = BatchFields(**description["fields"])
        self.n_items = description["n_items"]
        self.max_history = description["max_history"]
        self.precision = description["precision"]
        self.exclude_history = description["exclude_history"]
        self.item_embedding = None
        self.recommender = empty_recommender(self.spec, keep_buffers=True)
        self.codes = ItemCodes(
            n_items=self.n_items, code_length=self.spec.code_length, code_num=self.spec.code_num
        )
        if self.spec.user_codes:
            self.codes.users = UserCodes(
                levels=self.spec.user_codes,
                code_num=self.spec.code_num,
                width=self.spec.semantic_hidden_size,
                finished=self.n_items,
            )
        ranker = description["ranker"]
        self.ranker = RANKERS[ranker["name"]](
            self.recommender, self.codes, self.fields, **ranker["options"]
        )

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.codes.table.device

    @property
    def left_out(self) -> torch.Tensor:
        """Items that were gone from the data and are not ranked ``[n]``."""
        return self.codes.left_out


def export_run(
    run_dir: str, out: str, config_dict: dict[str, Any] | None = None, form: str = "own"
) -> str:
    """Write the model of a finished run, adapters merged, as a directory of its own.

    Args:
        out: the directory, which must not exist or be empty.
        config_dict: overrides keys of the run's config.
        form: ``own``, which `load_exported` reads, or ``hf``: a plain LLaMA of transformers whose
            vocabulary is the codes.

    Returns:
        The files with their sizes.

    Raises:
        UserError: `run_dir` is not the directory of a finished run of this plugin, its adapters
            cannot be merged, or `out` cannot be written.
    """
    if form not in FORMATS:
        raise UserError(f"format ({form}): must be one of {', '.join(FORMATS)}")
    directory, folder = RunDirectory(run_dir), Path(out).absolute()
    values = read_own_config(directory, joined=True)
    _check_tuning(values)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: {folder} cannot be written ({error})") from error
    with held_output(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"out: {folder} exists already; name a new directory")
        if values["model"] != ENSEMBLE:
            _export(directory, folder, config_dict, form)
        elif form == "own":
            _export_ensemble(directory, folder, config_dict)
        else:
            raise UserError(f"format ({form}): an ensemble has none: name one of its members")
        return _sizes(folder)


def _check_tuning(config: Config | dict[str, Any]) -> None:
    """Refuse what is quantized: its adapters stay beside it, and are no part of an export."""
    if "tuning" in config and config["tuning"] == "qlora":
        raise UserError(
            "tuning (qlora): its adapters cannot be merged into weights of 4 bits without losing "
            "digits; keep the run itself, or train with lora"
        )


def _export(
    directory: RunDirectory,
    folder: Path,
    config_dict: dict[str, Any] | None,
    form: str = "own",
) -> None:
    config, model, dataset, *_ = load_run(str(directory.path), config_dict)
    _check_tuning(config)  # of a member of an ensemble, too
    model.merge_adapters()
    catalogue = Catalogue.from_dataset(dataset)
    try:
        with atomic_directory(folder) as fresh:
            if form == "hf":
                write_plain_llama(fresh, model, catalogue)
            else:
                _write_own(fresh, config, model, catalogue)
            # The card has no checksum: it is there to be edited.
            card = model_card(directory, config, model, dataset, form)
            (fresh / _CARD).write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise UserError(f"out: {folder} cannot be written ({error})") from error


def _write_own(folder: Path, config: Config, model: ETEGRecLlama, catalogue: Catalogue) -> None:
    if model.recommender.item_head is not None:
        model.recommender.item_head.finish()
    model.recommender.text = None  # texts are for training, and for items that come later
    state = {f"recommender.{k}": v for k, v in model.recommender.state_dict().items()}
    if model.codes.users is not None:
        model.codes.users.finish()
    state |= {f"codes.{k}": v for k, v in model.codes.state_dict().items()}
    save_file({k: v.cpu().contiguous() for k, v in state.items()}, folder / _WEIGHTS)
    _write_json(folder / _CONFIG, _description(config, model))
    _write_json(folder / _CATALOGUE, catalogue.record())
    write_checksums(folder)


def _export_ensemble(
    directory: RunDirectory, folder: Path, config_dict: dict[str, Any] | None
) -> None:
    """Write an ensemble as a directory with an export of each member in it."""
    config, model, dataset, *_ = load_run(str(directory.path), config_dict)
    members = [one for one in read_members(directory) if one.weight]
    for member in members:
        if not is_ours(found := RunDirectory(member.path).read_config()):
            raise UserError(
                f"run_dir {directory.path}: its member {member.name} is {found['model']} of "
                "RecBole, which cannot be had without its dataset: use the run itself"
            )
    catalogue, values = Catalogue.from_dataset(dataset), {"data_path": config.inputs["data_path"]}
    description = {
        "members": [{"name": member.name, "weight": member.weight} for member in members],
        "fields": model.fields._asdict(),
        "n_items": model.n_items,
        "max_history": model.max_history,
        "exclude_history": model.exclude_history,
        "candidates": model.ranker.candidates,
        "left_out": model.left_out.tolist(),
    }
    try:
        with atomic_directory(folder) as fresh:
            for number, member in enumerate(members):
                _export(RunDirectory(member.path), fresh / str(number), values)
            _write_json(fresh / _CONFIG, description)
            _write_json(fresh / _CATALOGUE, catalogue.record())
            write_checksums(fresh)
    except OSError as error:
        raise UserError(f"out: {folder} cannot be written ({error})") from error


def _load_ensemble(
    folder: Path, description: dict[str, Any], device: str | torch.device
) -> EnsembleModel:
    """The ensemble in a directory; its members are loaded when they are needed."""

    def load(number: int) -> ExportedModel:
        return load_exported(folder / str(number), device)[0]

    members = [
        Member(member["name"], member["weight"], partial(load, number))
        for number, member in enumerate(description["members"])
    ]
    return EnsembleModel(
        members,
        BatchFields(**description["fields"]),
        n_items=description["n_items"],
        max_history=description["max_history"],
        exclude_history=description["exclude_history"],
        candidates=description["candidates"],
        left_out=torch.tensor(description["left_out"], dtype=torch.long),
        device=torch.device(device),
    )


def load_exported(
    directory: str | Path, device: str | torch.device | None = None
) -> tuple[ExportedModel | EnsembleModel, Catalogue]:
    """The model in a directory written by :func:`export_run`, and the names of its items.

    Args:
        device: none: the first GPU if there is one.

    Raises:
        UserError: it is not such a directory, or is damaged.
    """
    folder = Path(directory)
    joined = (folder / "0").is_dir()  # the first member of an ensemble
    needed = (_CONFIG, _CATALOGUE) if joined else (_WEIGHTS, _CONFIG, _CATALOGUE)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for name in needed:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}; is it the directory of an exported model?")
    try:
        description = json.loads((folder / _CONFIG).read_text("utf-8"))
        names = json.loads((folder / _CATALOGUE).read_text("utf-8"))
        titles = dict(zip(names["tokens"], names["titles"], strict=True))
        catalogue = Catalogue(names["tokens"], titles, names.get("counts"))
        if not joined:
            _check_description(folder, description)
        if damaged := damaged_file(folder, *needed):
            raise ValueError(f"{damaged} is missing or not as it was written")
        if joined:
            return _load_ensemble(folder, description, device), catalogue
        model = ExportedModel(description)
        model.load_state_dict(load_file(folder / _WEIGHTS), assign=True)
        model.codes.leave_out(torch.tensor(description["left_out"], dtype=torch.long))
        if model.codes.digest() != description["codes"] or len(catalogue) != model.n_items:
            raise ValueError("its codes or items are not those that were exported")
    except (*_BROKEN, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} is damaged ({reason}): export the run again") from error
    return model.requires_grad_(False).to(device).eval(), catalogue


def _check_description(folder: Path, description: dict[str, Any]) -> None:
    if "recommender" not in description:
        raise UserError(f"{folder}: exported by a version before this: export the run again")
    name = description["ranker"]["name"]
    if name not in RANKERS:
        raise UserError(f"{folder}: it ranks by '{name}', which is not in RANKERS: put it there")


def _description(config: Config, model: ETEGRecLlama) -> dict[str, Any]:
    """All that is needed to build the model but its weights."""
    head = model.recommender.item_head
    spec = replace(model.spec, text_tokens=0, text_head="none")
    if head is not None:  # its vectors are one table, which holds items that were added, too
        alike = 0 if head.alike is None else head.alike.shape[1]
        spec = replace(spec, head_vectors=len(head.table), head_alike=alike)
    options = {**ranker_options(config), **model.ranker.chosen}
    return {
        "recommender": asdict(spec),
        "ranker": {"name": ranking_of(config), "options": options},
        "fields": model.fields._asdict(),
        "n_items": model.n_items,
        "max_history": model.max_history,
        "precision": model.precision,
        "exclude_history": model.exclude_history,
        "codes": model.codes.digest(),
        "left_out": model.codes.left_out.tolist(),  # items that were gone from the data
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sizes(folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]
    lines = [f"{name:20}{size / 2**10:12,.1f} KiB" for name, size in files]
    return "\n".join([f"exported to {folder}", *lines]) + "\n"

"""An exported model as huggingface_hub knows models: from a directory or the hub, and to it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download

from recbole_etegrec.errors import hub_refusal
from recbole_etegrec.inference.catalogue import Catalogue
from recbole_etegrec.inference.export import EXPORTED, ExportedModel, load_exported
from recbole_etegrec.inference.recommend import Recommendation, recommend


class ETEGRecModel(
    ModelHubMixin,
    library_name="recbole-etegrec",
    tags=["recommender-system", "generative-recommendation"],
):
    """A trained model and the names of its items.

    ``ETEGRecModel.from_pretrained(DIR_OR_ID)`` reads what `export_run` has written, and
    ``push_to_hub(ID)`` sends it.

    Args:
        model: see :func:`recbole_etegrec.load_exported`.
        catalogue: of its items.
        folder: that both came from.
    """

    def __init__(self, model: ExportedModel, catalogue: Catalogue, folder: Path):
        self.model, self.catalogue, self.folder = model, catalogue, folder

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int = 10, **more: Any
    ) -> list[list[Recommendation]]:
        """The ``k`` best items after each history; see :func:`recbole_etegrec.recommend`."""
        return recommend(self.model, self.catalogue, histories, k, **more)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **more: Any
    ) -> "ETEGRecModel":
        """Read an export from a directory or the hub.

        Args:
            more: as huggingface_hub takes it, and ``device``; none: the first GPU if there is one.

        Raises:
            UserError: there is no such model, it cannot be had, or it is damaged.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **more)
        except (OSError, ValueError) as error:
            raise hub_refusal("model", str(pretrained_model_name_or_path), error) from error

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        device: str | None = None,
        **_: Any,
    ) -> "ETEGRecModel":
        folder = Path(model_id)
        if not folder.is_dir():
            found = snapshot_download(  # nothing but what is read, and no code
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=[*EXPORTED, *(f"[0-9]*/{name}" for name in EXPORTED)],
            )
            folder = Path(found)
        return cls(*load_exported(folder, device), folder)

    def _save_pretrained(self, save_directory: Path) -> None:
        files = [path for path in self.folder.rglob("*") if path.name in EXPORTED]
        for path in files:  # those of an ensemble's members are in folders below
            target = save_directory / path.relative_to(self.folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)

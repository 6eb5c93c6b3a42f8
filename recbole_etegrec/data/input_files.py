"""The files of a dataset that a run is about to read: fetched if there are none, and checked."""

from recbole_etegrec.config import Config, is_ours
from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.dataset_files import check_atomic_file, check_dataset_files
from recbole_etegrec.data.download import fetch_dataset
from recbole_etegrec.data.item_embedding import embedding_sources
from recbole_etegrec.data.kept_columns import columns_of


def require_files(config: Config, *, fetch: bool = True, embeds: bool = True) -> None:
    """Fetch the files of a dataset if there are none, and read through those that a run reads.

    Args:
        fetch: whether they may be fetched, and binary columns of large ones made.
        embeds: whether item embeddings are going to be made.

    Raises:
        UserError: they cannot be had, or are not what they should be.
    """
    if fetch:
        fetch_dataset(config)
    if (
        not is_ours(config) or columns_of(config, make=fetch) is None
    ):  # columns are of text that was checked
        check_dataset_files(config)
    if embeds and "text" in embedding_sources(config):
        files = AtomicFiles.of(config)
        fields = {files.item_field, *config["text_fields"]}
        check_atomic_file(files.path("item"), fields, files)

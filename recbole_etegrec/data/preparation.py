"""Makes the dataset and the loaders of a run from its config."""

from recbole.data import dataset as recbole_datasets
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.data.utils import create_samplers
from recbole.utils import ModelType

from recbole_etegrec.config import Config, refusals_for_the_user
from recbole_etegrec.data.checked_dataset import CheckedDataset
from recbole_etegrec.data.columnar_dataset import ColumnarDataset, numbered_as_known
from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.data.identity import Identity, ids_to_keep
from recbole_etegrec.data.kept_columns import columns_of
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.data.presplit_dataset import PresplitInteractions, PresplitSequences
from recbole_etegrec.data.rules import CLASSIFIERS
from recbole_etegrec.data.seen_items import settle_history


class SampledLoader(NegSampleEvalDataLoader):
    """RecBole's loader of sampled evaluation; `eval_batch_size` counts users.

    RecBole itself counts a row for each candidate item here, but users in full ranking. The
    sampled items do not depend on how users are batched.
    """

    def _init_batch_size_and_step(self) -> None:
        self.step = self.config["eval_batch_size"]
        self.set_batch_size(self.step)


def create_dataset(config: Config, *, of_run: bool = False) -> WholeSequenceDataset:
    """Load and filter the atomic files, as RecBole's function of this name.

    Of a large dataset, binary columns are mapped in their place, which gives the same.

    Args:
        of_run: whether it is that of a run that is used, for which nothing is written.
    """
    columns = columns_of(config, make=not of_run and ids_to_keep() is None)
    if columns is not None:
        columns = numbered_as_known(columns, config["ITEM_ID_FIELD"])
    with refusals_for_the_user("dataset"):  # as when filters leave nothing
        if columns is None:
            dataset = WholeSequenceDataset(config)
        else:
            dataset = ColumnarDataset(config, columns)
    dataset.identity = Identity.of(dataset, [dataset.iid_field])
    return dataset


def create_recbole_dataset(config: Config) -> Dataset:
    """Load and filter the atomic files for one of RecBole's own models.

    No pickle of a dataset is looked for, unlike in RecBole's function.
    """
    kind = config["MODEL_TYPE"]
    names = {
        ModelType.SEQUENTIAL: "SequentialDataset",
        ModelType.KNOWLEDGE: "KnowledgeBasedDataset",
    }
    theirs = getattr(recbole_datasets, names.get(kind, "Dataset"))
    theirs = getattr(recbole_datasets, f"{config['model']}Dataset", theirs)
    own = CheckedDataset
    if config["benchmark_filename"] and kind not in CLASSIFIERS:
        own = PresplitSequences if kind == ModelType.SEQUENTIAL else PresplitInteractions
    with refusals_for_the_user("dataset"):
        return type(theirs.__name__, (own, theirs), {})(config)


def data_preparation(
    config: Config, dataset: WholeSequenceDataset
) -> tuple[SequenceLoader, AbstractDataLoader, AbstractDataLoader]:
    """Split a dataset and wrap its parts in loaders, as RecBole's function of this name.

    Returns:
        Training batches of whole sequences, and RecBole's evaluation loaders for validation and
        test: full ranking, or sampled where ``eval_args.mode`` says so.
    """
    built = dataset.build()
    samplers = create_samplers(config, dataset, built)
    train_data = SequenceLoader(
        built[0],
        max_tokens=config["max_tokens"],
        code_length=config["code_length"],
        training_rows=config["training_rows"],
        window_overlap=config["window_overlap"],
        cut_probability=config["cut_probability"],
        step_targets=config["step_targets"],
        seed=config["seed"],
        whole_histories=config["user_codes"] > 0,
    )
    loaders = {True: FullSortEvalDataLoader, False: SampledLoader}
    valid_data, test_data = (
        loaders[config["eval_args"]["mode"][phase] == "full"](config, part, sampler, shuffle=False)
        for phase, part, sampler in zip(("valid", "test"), built[1:], samplers[1:], strict=True)
    )
    return settle_history(config, (train_data, valid_data, test_data))

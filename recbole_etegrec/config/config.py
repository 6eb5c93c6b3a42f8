"""RecBole's `Config`, with values that are parsed, keys that are known and a device that is right.

Later entries win: RecBole's own defaults < `properties/` of the plugin < config files < the
dictionary (which is where the command line ends up). What the values mean is RecBole's business;
what is refused while they are read is in `values.py`, one value at a time, and in `checks.py`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from datetime import timedelta
from typing import Any

import torch
import yaml
from accelerate import PartialState

from recbole_etegrec.config import compat  # noqa: F401  before any part of RecBole is used
from recbole_etegrec.config.checks import check_config
from recbole_etegrec.config.files import (
    DEFAULT_DATASET,
    Loader,
    properties_dir,
    read_config_files,
    recbole_models,
)
from recbole_etegrec.config.models import STANDS_ON, is_ours, lineage
from recbole_etegrec.config.values import (
    DEFAULT_MODEL,
    check_keys,
    check_values,
    known_keys,
    parse_value,
    with_floats,
)
from recbole_etegrec.errors import UserError, nearest

import recbole.config  # isort: skip
from recbole.utils import InputType, ModelType, get_model  # isort: skip

# These describe one run, one machine or one dataset, so a rebuilt config must not inherit them.
NOT_INPUTS = {"MODEL_TYPE", "run_dir", "resume", "nproc", "world_size", "download"}
NOT_INPUTS |= {"dataset_counts"}

_PATHS = ("data_path", "item_embedding_file", "sasrec_run", "embedding_cache", "distill_from")

# What the plugin's keys are on the CPU and on a GPU where they are left empty.
BY_DEVICE: dict[str, tuple[int, int]] = {"eval_batch_size": (128, 2048)}
# What of them follows from the catalogue; see `Config.settle`.
BY_CATALOGUE = ("code_num", "tokenizer_epochs")


def find_recbole_model(name: str) -> type:
    """RecBole's model class called `name`.

    Raises:
        UserError: no model has that name, or it needs a package that is not installed.
    """
    known = [*STANDS_ON, *recbole_models()]
    anomalies = torch.is_anomaly_enabled()
    try:
        return get_model(name)
    except ImportError as error:
        # RecBole looks for a name it does not know in the models of xgboost and lightgbm.
        if name.lower() in map(str.lower, known):
            raise UserError(f"model {name}: {error}; install it first") from error
    except (ValueError, AttributeError):
        pass
    finally:
        torch.autograd.set_detect_anomaly(anomalies)  # RecBole's module of SINE turns it on
    raise UserError(f"unknown model '{name}'{nearest(name, known)}")


class OwnModel:
    """What RecBole's configuration asks of the class of a model, for those of the plugin."""

    type = ModelType.SEQUENTIAL
    input_type = InputType.POINTWISE


class Config(recbole.config.Config):
    """Configuration of one run, of any model of the plugin or of RecBole.

    `inputs` holds everything that was chosen, as plain data: ``Config(config_dict=inputs)`` is
    the same configuration again. A missing key reads as None, as in RecBole. Each value is looked
    at alone; what holds between keys is for :func:`recbole_etegrec.runs.checks.check_rules`.

    Raises:
        UserError: an unknown key, model or file, or a value that its key does not take.
    """

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: list[str] | None = None,
        config_dict: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(model, dataset, config_file_list, config_dict)
        check_config(self)
        if is_ours(self):
            self._fill_in_by_device()

    def compatibility_settings(self) -> None:
        """Nothing: `compat.py` has added what numpy lacks."""

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return Loader

    def _load_config_files(self, file_list: list[str] | None) -> dict[str, Any]:
        return read_config_files(file_list or ())

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        paths = {k: os.fspath(v) for k, v in config_dict.items() if isinstance(v, os.PathLike)}
        return {
            key: parse_value(key, value) if isinstance(value, str) else deepcopy(value)
            for key, value in {**config_dict, **paths}.items()
        }

    def _load_cmd_line(self) -> dict[str, Any]:
        # The arguments of this process belong to its command line tool, not to every Config.
        return {}

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple:
        model = model or self.external_config_dict.get("model", DEFAULT_MODEL)
        dataset = dataset or self.external_config_dict.get("dataset", DEFAULT_DATASET)
        named = {"dataset": dataset} | ({} if isinstance(model, type) else {"model": model})
        check_values(named)
        if isinstance(model, str) and model not in STANDS_ON:
            model = find_recbole_model(model)
        if isinstance(model, str):
            return model, OwnModel, str(dataset)
        return model.__name__, model, str(dataset)

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        if model in STANDS_ON:
            parents = lineage(model)
        else:  # those that a class is derived from
            parents = [parent.__name__ for parent in reversed(model_class.__mro__)]
        names = [
            name
            for parent in parents
            for name in (f"model/{parent}", f"dataset/{dataset}", f"model/{parent}-{dataset}")
        ]
        # Models that classify labelled pairs keep the evaluation RecBole gives them.
        if model_class.type not in (ModelType.CONTEXT, ModelType.DECISIONTREE):
            names.insert(0, "overall")
        for name in names:
            path = properties_dir() / f"{name}.yaml"
            if path.is_file():
                self._update_internal_config_dict(path)

    def _get_final_config_dict(self) -> dict[str, Any]:
        check_keys(self.external_config_dict, self.known_keys)
        final = deepcopy(super()._get_final_config_dict())
        check_values(final, self.model)
        if self.model in STANDS_ON:
            final.update(with_floats(final))
        final.update(model=self.model, dataset=self.dataset)
        for key in _PATHS:
            if final.get(key):
                final[key] = os.path.abspath(str(final[key]))
        for key in ("base_model", "text_model", "prompts"):  # names, unless there is such a path
            name = final.get(key)
            if isinstance(name, str) and os.path.exists(os.path.expanduser(name)):
                final[key] = os.path.abspath(os.path.expanduser(name))
        self._complete_evaluation(final)
        if (
            final["MODEL_TYPE"] == ModelType.SEQUENTIAL
            and (final.get("loss_type") == "CE" or is_ours(final))
            and "train_neg_sample_args" not in self.external_config_dict
        ):
            final["train_neg_sample_args"] = None  # cross-entropy over all items samples none
        if (
            final["MODEL_TYPE"] != ModelType.SEQUENTIAL
            and final["eval_args"]["mode"] in ("full", {"valid": "full", "test": "full"})
            and "eval_batch_size" not in self.external_config_dict
        ):
            final["eval_batch_size"] = 2**20  # pairs of user and item: RecBole's 4096 are one user
        hidden = NOT_INPUTS | ({"gpu_id"} - self.external_config_dict.keys())
        self.inputs = {key: deepcopy(final[key]) for key in final if key not in hidden}
        return final

    def _fill_in_by_device(self) -> None:
        """Settle what follows from the device; a rebuilt configuration then has it on any other."""
        on_gpu = self.final_config_dict["device"].type == "cuda"
        for key, values in BY_DEVICE.items():
            if self.final_config_dict[key] is None:
                self.final_config_dict[key] = self.inputs[key] = values[on_gpu]

    def settle(self, key: str, value: Any) -> None:
        """Give a key of `BY_CATALOGUE` its value, where it was left empty, once items are known."""
        if self.final_config_dict[key] is None:
            self.final_config_dict[key] = self.inputs[key] = value

    def keep_settled(self, recorded: Mapping[str, Any]) -> None:
        """Take what was left empty as it was settled when the run of that configuration began."""
        for key in (*BY_DEVICE, *BY_CATALOGUE):
            if key in recorded and self.external_config_dict.get(key) is None:
                self.final_config_dict[key] = self.inputs[key] = recorded[key]

    @property
    def known_keys(self) -> set[str]:
        """The keys that this model may be given."""
        known = known_keys(self.model).union(self.internal_config_dict, *self.parameters.values())
        # Models that classify labelled pairs rank no items that could be excluded.
        return known - ({"exclude_history"} - self.internal_config_dict.keys())

    def _complete_evaluation(self, final: dict[str, Any]) -> None:
        chosen = self.external_config_dict.get("eval_args")
        if isinstance(chosen, dict):
            # RecBole would fill what is not given with a random 80/10/10 split.
            final["eval_args"] = {**self.internal_config_dict["eval_args"], **chosen}
        columns = final.get("load_col")
        by_time = isinstance(final["eval_args"], dict) and final["eval_args"].get("order") == "TO"
        if by_time and isinstance(columns, dict) and columns.get("inter") not in (None, [], "*"):
            needed = [*columns["inter"], final["TIME_FIELD"]]
            classifies = final["MODEL_TYPE"] in (ModelType.CONTEXT, ModelType.DECISIONTREE)
            if final["benchmark_filename"] and not classifies:
                needed.append(final["ITEM_ID_FIELD"] + final["LIST_SUFFIX"])
            final["load_col"] = {**columns, "inter": list(dict.fromkeys(needed))}

    def _set_default_parameters(self) -> None:
        with refusals_for_the_user("config"):
            super()._set_default_parameters()

    def _set_train_neg_sample_args(self) -> None:
        with refusals_for_the_user("train_neg_sample_args"):
            super()._set_train_neg_sample_args()

    def _set_eval_neg_sample_args(self, phase: str) -> None:
        with refusals_for_the_user("eval_args: mode"):
            super()._set_eval_neg_sample_args(phase)

    def _init_device(self) -> None:
        final = self.final_config_dict
        ids = final["gpu_id"]
        final["gpu_id"] = ",".join(map(str, ids)) if isinstance(ids, (list, tuple)) else str(ids)
        # A launcher has given this process its device; only a lone process may choose one.
        if "gpu_id" in self.external_config_dict and "LOCAL_RANK" not in os.environ:
            os.environ["CUDA_VISIBLE_DEVICES"] = final["gpu_id"]
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.cuda.is_available():
            final["use_gpu"] = False  # else each would take itself for the only process
        # Processes wait for the main one while it pretrains the tokenizer, however long that is.
        state = PartialState(cpu=not final["use_gpu"], timeout=timedelta(days=7))
        final["device"] = state.device
        # RecBole's own distribution stays off.
        final.update(single_spec=True, local_rank=0)


_REFUSALS = (LookupError, TypeError, ValueError, NotImplementedError, RuntimeError, AssertionError)


@contextmanager
def refusals_for_the_user(where: str) -> Iterator[None]:
    """What RecBole refuses while it reads the configuration is the user's to mend."""
    try:
        yield
    except _REFUSALS as error:
        reason = " ".join(str(error).split())
        if isinstance(error, KeyError):  # which says no more than the key
            reason = f"{reason} is missing"
        raise UserError(f"{where}: {reason}") from error

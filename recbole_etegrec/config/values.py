"""Values as they were chosen: parsed, and checked against the tables of keys.

All is looked at that can be before torch and RecBole are imported, so that a typo is answered at
once; :class:`recbole_etegrec.config.Config` has the same checks.
"""

import ast
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import yaml

from recbole_etegrec.config.files import (
    RECBOLE_PROPERTIES,
    Loader,
    read_config_files,
    recbole_models,
)
from recbole_etegrec.config.keys import KEYS
from recbole_etegrec.config.kinds import Key, shown
from recbole_etegrec.config.models import STANDS_ON
from recbole_etegrec.config.recbole_keys import RECBOLE_KEYS, model_keys
from recbole_etegrec.errors import UserError, nearest

DEFAULT_MODEL = "ETEGRecLlama"

EACH = ", for each of these models"  # of a comparison; added to what is said of a key

_TEXT_VALUES = {"true": True, "false": False, "none": None, "null": None, "~": None}
_UNREADABLE = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, yaml.YAMLError)


class UnknownKeyError(UserError):
    """A key that the model cannot be given.

    Attributes:
        key: its name.
    """

    def __init__(self, key: str, known: Iterable[str], models: str = ""):
        hint = nearest(key, known) or " (`run --help` says where the keys are listed)"
        super().__init__(f"unknown config key '{shown(key)}'{models}{hint}")
        self.key = key


def parse_value(key: str, text: str) -> Any:
    """The typed value of `text`: a Python literal, a YAML list or mapping, else the text itself.

    A key whose values are texts, such as a path or an interval ``[5,10]``, gets a text in any case.
    """
    wants_text = key in RECBOLE_KEYS and RECBOLE_KEYS[key].is_text or key.endswith("_num_interval")
    wants_text = wants_text or (key in KEYS and KEYS[key].is_text)
    plain = _TEXT_VALUES.get(text.lower(), text)
    if plain is not text and (plain is None or not wants_text):
        return plain
    for parse in (ast.literal_eval, _parse_collection):
        try:
            value = parse(text)
        except _UNREADABLE:
            continue
        if isinstance(value, str) or (
            not wants_text and isinstance(value, (int, float, list, tuple, dict))
        ):
            return value
    return text


def _parse_collection(text: str) -> Any:
    # Scalars are left out: YAML would turn `no`, `12:30` and `2020-01-01` into something else.
    return yaml.load(text, Loader) if text[:1] in ("[", "{") else text


def check_model(name: Any) -> None:
    """Refuse a model that is neither of the plugin nor of RecBole.

    Raises:
        UserError: there is no such model.
    """
    known = (*STANDS_ON, *recbole_models())
    if name not in known:
        raise UserError(f"unknown model '{shown(name)}'{nearest(name, known)}")


def keys_of(model: str | None) -> dict[str, Key]:
    """The table of the keys that a model takes; of other models than these two kinds, RecBole's."""
    return {**RECBOLE_KEYS, **(KEYS if model in STANDS_ON else _recbole_model(model)[1])}


def known_keys(model: str) -> set[str]:
    """The names of all keys that a model of the plugin or of RecBole may be given."""
    return {*keys_of(model), *_recbole_model(model)[0]}


@cache
def _recbole_model(model: str | None) -> tuple[tuple[str, ...], dict[str, Key]]:
    """The names of the keys in RecBole's YAML file for a model, and a table of most of them."""
    file = RECBOLE_PROPERTIES / "model" / f"{model}.yaml"
    if not file.is_file():
        return (), {}
    source = file.read_text("utf-8")
    defaults = yaml.load(source, Loader) or {}
    return tuple(defaults), model_keys(defaults, source)


def check_values(values: Mapping[str, Any], model: str | None = DEFAULT_MODEL) -> None:
    """Look at each value alone.

    Args:
        values: by key; keys that are not in the table of the model are passed over.

    Raises:
        UserError: a value is not one that its key takes.
    """
    table = keys_of(model)
    for name, value in values.items():
        if name in table and (fault := table[name].fault(name, value)):
            raise UserError(fault)


def with_floats(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values, of the plugin's keys, that are whole where their key has any numbers.

    transformers takes no whole number in their place.
    """
    return {
        key: float(value)
        for key, value in values.items()
        if type(value) is int and key in KEYS and KEYS[key].kind.startswith("float")
    }


def check_keys(
    values: Iterable[str], known: set[str], models: str = "", flags: Iterable[str] = ()
) -> None:
    """Refuse keys that are not known.

    Args:
        flags: further names that may have been meant.
        models: what the message says of the models that they are not known of.

    Raises:
        UnknownKeyError: the first of them.
    """
    for key in values:
        if key not in known:
            raise UnknownKeyError(key, {*known, *flags}, models)


def check_chosen(
    models: Sequence[str],
    dataset: str,
    files: Iterable[str],
    values: Mapping[str, str],
    *,
    own: Iterable[str] = (),
    flags: Iterable[str] = (),
) -> dict[str, Any]:
    """Refuse, before anything heavy is imported, what needs no data to be seen to be wrong.

    Args:
        models: those to run; none: the one in files or values, or the default.
        dataset: its name, empty where it is in files or values.
        files: of configuration.
        values: of the command line, as text; they win over the files.
        own: the keys of `compare` itself, which are passed over.
        flags: of the command line, which an unknown key may have been meant for.

    Returns:
        What is chosen, by key; empty for a run that goes on, which has chosen before.

    Raises:
        UserError: an unknown model or key, an unreadable file, or a value that its key does not
            take.
    """
    chosen = read_config_files(files)
    chosen |= {key: parse_value(key, value) for key, value in values.items()}
    chosen |= {"dataset": dataset} if dataset else {}
    chosen = {key: value for key, value in chosen.items() if key not in own}
    if isinstance(resumed := chosen.get("resume"), str) and os.path.isdir(resumed):
        check_values(chosen)  # the run has its own model
        return {}
    known = set()
    for model in models or [chosen.get("model", DEFAULT_MODEL)]:
        check_model(model)
        known |= known_keys(model)
        check_values(chosen, model)
    check_keys(chosen, known, EACH if own else "", flags)
    return chosen

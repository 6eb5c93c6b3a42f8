"""What a value of a key can be: the kinds that the tables of keys are made of.

A kind looks at one value alone and says in one sentence what is wrong with it. This module imports
nothing heavy, so that a wrong value is refused before torch is loaded.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from reprlib import Repr
from typing import Any

from recbole_etegrec.errors import nearest
from recbole_etegrec.storage.printable import one_line

LARGEST = 2**31 - 1  # of whole numbers without a maximum of their own
_FINITE = 1e100  # more than any quantity here; products of such numbers are finite too
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_INTERVAL = re.compile(r"([\[(])\s*([^\s,]+)\s*,\s*([^\s,]+)\s*([\])])")

_brief = Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 60
_brief.maxlist = _brief.maxtuple = 12


def shown(value: Any) -> str:
    """A value as messages show it: in one line, cut where it is long.

    Texts have no quotation marks, unless they are empty or could be taken for a number.
    """
    if isinstance(value, str):
        text = one_line(value.encode("utf-8", "replace").decode())
        if len(text) > 120:
            return f"{text[:100]}... of {len(text)} characters"
        return f"'{text}'" if not text.strip() or text[0] in "-+.0123456789" else text
    return _brief.repr(value)


@dataclass(frozen=True)
class Key:
    """What a value of one key must be.

    Attributes:
        kind: type and range, in the words of the YAML files' comments.
        wanted: what the value must be, as the end of the sentence "KEY (VALUE) must be ...".
        fits: whether a value is so.
        optional: whether it may be left empty.
        names: the values there are, where they are names.
        parts: the keys of a mapping and what each of their values must be; those of other keys too
            where it has one for ``"*"``.
    """

    kind: str
    wanted: str
    fits: Callable[[Any], bool] = field(repr=False)
    optional: bool = False
    names: tuple = ()
    parts: Mapping[str, "Key"] = field(default_factory=dict)

    def takes(self, value: Any) -> bool:
        """Whether the key may have this value."""
        return self.fault("", value) is None

    def fault(self, name: str, value: Any) -> str | None:
        """What is wrong with a value of the key `name`, as a sentence; None if nothing is."""
        if self.optional and value is None:
            return None
        if not self.fits(value):
            return f"{name} ({shown(value)}) must be {self.wanted}{self._hint(value)}"
        for part, inner in value.items() if self.parts and isinstance(value, dict) else ():
            key = self.parts.get(part, self.parts.get("*"))
            if key is None:
                known = ", ".join(self.parts)
                return f"{name}: unknown key '{shown(part)}'{nearest(part, self.parts)} ({known})"
            if fault := key.fault(f"{name}: {shown(part)}", inner):
                return fault
        return None

    def _hint(self, value: Any) -> str:
        """The nearest name to the first text that is none of them."""
        texts = value if isinstance(value, (list, tuple)) else [value]
        wrong = [v for v in texts if isinstance(v, str) and v not in self.names]
        return nearest(wrong[0], self.names) if wrong else ""

    @property
    def is_text(self) -> bool:
        """Whether its values are texts alone, so that nothing is to be read into one."""
        return self.kind == "str"


def integer(least: int, most: int = LARGEST) -> Key:
    """A whole number from `least` to `most`."""
    kind = f"int >= {least}" + (f", <= {most}" if most != LARGEST else "")
    wanted = f"a whole number from {least} to {most}"
    return Key(kind, wanted, lambda v: type(v) is int and least <= v <= most)


def number(
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Key:
    """A finite number within bounds, of which `above` and `below` are left out themselves."""
    bounds = (
        (above, "> {}", "above {}", lambda v: v > above),
        (least, ">= {}", "{} or above", lambda v: v >= least),
        (below, "< {}", "below {}", lambda v: v < below),
        (most, "<= {}", "{} at most", lambda v: v <= most),
    )
    held = [bound for bound in bounds if bound[0] is not None]
    signs = ", ".join(sign.format(limit) for limit, sign, *_ in held)
    words = ", ".join(word.format(limit) for limit, _, word, _ in held)
    return Key(
        f"float {signs}".strip(),
        f"a number{' ' if above is not None else ', '}{words}" if words else "a finite number",
        lambda v: (
            type(v) in (int, float)
            and -_FINITE < v < _FINITE
            and all(holds(v) for *_, holds in held)
        ),
    )


def above_zero() -> Key:
    """A number above 0, such as a learning rate."""
    return number(above=0)


def weight() -> Key:
    """A number that may be 0."""
    return number(least=0)


def share() -> Key:
    """A share below 1."""
    return number(least=0, below=1)


def boolean() -> Key:
    """True or False."""
    return replace(choice(True, False), wanted="True or False", names=())


def choice(*names: Any) -> Key:
    """One of some values of one type."""
    known = f"one of {', '.join(map(str, names))}"
    kind = type(names[0])
    return Key(kind.__name__, known, lambda v: type(v) is kind and v in names, names=names)


def worded(*names: str, wanted: str | None = None) -> Key:
    """One of some names, in any case."""
    lower = {name.lower() for name in names}
    key = replace(choice(*names), fits=lambda v: type(v) is str and v.lower() in lower)
    return replace(key, wanted=wanted or key.wanted)


def entry(*names: str) -> Key:
    """A name in a table of the package, such as `TOKENIZERS`; `names` are those that it comes with.

    More names can be registered in that table, so any text passes here. The part that owns the
    table refuses unknown names by its rule :func:`recbole_etegrec.config.keys.named_in`.
    """
    return replace(choice(*names), fits=lambda v: type(v) is str)


def text(wanted: str = "text") -> Key:
    """A text in one line that is not empty."""
    return Key("str", wanted, lambda v: type(v) is str and is_line(v))


def is_line(value: str) -> bool:
    """Whether a text has something in it, and no control characters."""
    return bool(value.strip()) and not _UNPRINTABLE.search(value)


def path(wanted: str = "a path") -> Key:
    """A path that a file system takes: its parts have 255 bytes at most, all together 4095."""

    def fits(value: Any) -> bool:
        if not isinstance(value, (str, PathLike)):
            return False
        name = fspath(value)
        return isinstance(name, str) and is_line(name) and _is_short(name)

    return Key("str", f"{wanted} (names of 255 bytes at most)", fits)


def _is_short(name: str) -> bool:
    parts = name.encode("utf-8").split(b"/")
    return sum(map(len, parts)) + len(parts) <= 4095 and max(map(len, parts)) <= 255


def separator() -> Key:
    """What stands between cells: a text, such as a tab or a space, without a line's end."""
    return Key("str", "a text of one character or more", _is_separator)


def _is_separator(value: Any) -> bool:
    return type(value) is str and value != "" and not re.search("[\r\n\x00\ud800-\udfff]", value)


def interval() -> Key:
    """An interval of numbers in RecBole's notation, such as ``[5,inf)``, or several with ``;``."""
    wanted = "an interval in quotes, such as '[5,inf)'"
    return Key("str", wanted, lambda v: type(v) is str and all(map(_is_interval, v.split(";"))))


def _is_interval(value: str) -> bool:
    found = _INTERVAL.fullmatch(value.strip())
    try:
        low, high = float(found[2]), float(found[3])
    except (TypeError, ValueError):
        return False
    return low <= high


def listed(inner: Key, wanted: str, *, least: int = 0, most: int = 1000) -> Key:
    """A list of `least` to `most` values that are each as `inner` says."""

    def fits(value: Any) -> bool:
        many = isinstance(value, (list, tuple)) and least <= len(value) <= most
        return many and all(map(inner.takes, value))

    return Key("list", wanted, fits, names=inner.names)


def distinct(key: Key) -> Key:
    """The same list, in which nothing may stand twice."""

    def fits(value: Any) -> bool:
        several = isinstance(value, (list, tuple))
        return key.fits(value) and not (several and any(value.count(v) > 1 for v in value))

    return replace(key, fits=fits, wanted=f"{key.wanted}, each once")


def either(*keys: Key, wanted: str) -> Key:
    """A value that one of some keys takes."""
    kinds = dict.fromkeys(key.kind for key in keys)
    names = tuple(name for key in keys for name in key.names)
    fits = lambda v: any(key.takes(v) for key in keys)  # noqa: E731
    return Key(", ".join(kinds), wanted, fits, names=names)


def mapping(wanted: str, needs: tuple[str, ...] = (), **parts: Key) -> Key:
    """A mapping whose values are each as `parts` says, by key."""
    return Key("dict", wanted, lambda v: _is_mapping(v) and v.keys() >= set(needs), parts=parts)


def fields(inner: Key, wanted: str) -> Key:
    """A mapping of names of any kind, such as fields, to values that are as `inner` says."""
    return Key("dict", wanted, _is_mapping, parts={"*": inner})


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(type(key) is str and is_line(key) for key in value)


def optional(key: Key) -> Key:
    """The same key, which may also be left empty."""
    return replace(key, optional=True)

"""What the sources of item embeddings must be, and what each of them needs."""

from collections.abc import Iterator
from pathlib import Path

from recbole_etegrec.config import Config
from recbole_etegrec.config.keys import KEYS
from recbole_etegrec.data.item_embedding import ITEM_EMBEDDINGS, content_sources, embedding_sources
from recbole_etegrec.errors import nearest


def rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Pairs (whether it is broken, message), one for each rule."""
    sources, known = embedding_sources(config), tuple(ITEM_EMBEDDINGS)
    named = f"item_embedding ({config['item_embedding']})"
    yield not sources, f"{named} must name a source: {', '.join(known)}"
    for name in sources:
        choices = f"must be one of {', '.join(known)}, or a list of them{nearest(name, known)}"
        yield name not in known, f"{named} {choices}"
        yield sources.count(name) > 1, f"{named} names {name} more than once"
    if "file" in sources:
        yield from _file_rules(config["item_embedding_file"])
    if "sasrec" in sources:
        yield from _sasrec_rules(config["sasrec_run"], config["semantic_hidden_size"])
    content = content_sources(config)
    yield (
        bool(content) and not config["item_head"],
        f"item_content ({config['item_content']}) is read by the item head: set item_head to True, "
        "or leave it out",
    )
    for name in content:
        yield content.count(name) > 1, f"item_content names {name} more than once"
    if "text" in (*sources, *content):
        yield from _text_rules(config["text_model"])


def _file_rules(file: str | None) -> Iterator[tuple[bool, str]]:
    yield not (file and Path(file).is_file()), _must_be("item_embedding_file", file)


def _sasrec_rules(run: str | None, width: int) -> Iterator[tuple[bool, str]]:
    if run:
        parts = ("config.yaml", "result.json", "best/model.safetensors")
        finished = all((Path(run) / name).is_file() for name in parts)
        yield not finished, f"{_must_be('sasrec_run', run)}, with its best/model.safetensors"
    else:
        yield width % 2 != 0, f"semantic_hidden_size ({width}) must be even for sasrec"


def _text_rules(model: str) -> Iterator[tuple[bool, str]]:
    like_a_path = str(model).startswith((".", "~", "/")) or str(model).count("/") > 1
    yield like_a_path and not Path(model).is_dir(), f"text_model ({model}): no such directory"


def _must_be(key: str, value: object) -> str:
    """The message on a value that a key may have, but not where its source is used."""
    return f"{key} ({value}) must be {KEYS[key].wanted}"

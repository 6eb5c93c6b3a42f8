"""Archives from a server on this machine, which answers well, badly, or not at all."""

import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recbole_etegrec.config import Config
from recbole_etegrec.data import create_dataset, download
from recbole_etegrec.data.dataset_files import check_dataset_counts, check_dataset_files
from recbole_etegrec.errors import UserError
from recbole_etegrec.storage import archives
from tests.conftest import write_interactions
from tests.helpers import beauty_path

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
LINES = [f"A{n // 7}\tB{n % 7}\t5.0\t{1_400_000_000 + n}" for n in range(4000)]
CONTENT = "\n".join([HEADER, *LINES]) + "\n"
LAYOUT = {
    "Amazon_Beauty/": "",
    "Amazon_Beauty/Amazon_Beauty.inter": CONTENT,
    "Amazon_Beauty/Amazon_Beauty.item": "item_id:token\ttitle:token_seq\nB1\tsoap\n",
    "Amazon_Beauty/README.md": "by whom",
    "__MACOSX/Amazon_Beauty/._Amazon_Beauty.inter": "noise",
}


def zipped(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return packed.getvalue()


class Server:
    """What the server sends, how it misbehaves, and the `Range` of each request so far."""

    def __init__(self) -> None:
        self.content = zipped(LAYOUT)
        self.ranges = True
        self.status: list[int] = []  # of the next requests, instead of an answer
        self.cuts: list[int] = []  # bytes after which the next answers break off
        self.stall = False
        self.asked: list[str | None] = []
        self.go_on = threading.Event()
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    server_state: Server

    def do_GET(self) -> None:  # noqa: N802
        state = self.server_state
        span = self.headers["Range"]
        state.asked.append(span)
        if state.status:
            return self.send_error(state.status.pop(0))
        start = int(span[6:-1]) if span and state.ranges else 0
        if start >= len(state.content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            total = len(state.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(len(state.content) - start))
        self.end_headers()
        end = start + state.cuts.pop(0) if state.cuts else None
        self.wfile.write(state.content[start:end])
        if state.stall:
            self.wfile.flush()
            state.go_on.wait(5)

    def log_message(self, *_args) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    state = Server()
    handler = type("Bound", (Handler,), {"server_state": state})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_port}/Amazon_Beauty.zip"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    state.go_on.set()
    http.shutdown()
    http.server_close()
    thread.join(5)


def fetched(server: Server, folder: Path, **more) -> Path:
    """Fetch into the dataset X of a folder; returns the dataset's folder."""
    values = {"data_path": str(folder), "download": server.url, "show_progress": False, **more}
    download.fetch_dataset(Config("Pop", "X", config_dict=values))
    return folder / "X"


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_fetch_dataset_leaves_the_atomic_files_alone_when_the_archive_is_sound(server, tmp_path):
    folder = fetched(server, tmp_path)
    assert (folder / "X.inter").read_text() == CONTENT
    assert files_in(tmp_path) == {"X/X.inter", "X/X.item"}
    config = Config("Pop", "X", config_dict={"data_path": str(tmp_path)})
    check_dataset_files(config)
    fetched(server, tmp_path)
    assert server.asked == [None]  # the second time, nothing was asked for


def test_fetch_dataset_goes_on_when_the_connection_broke(server, tmp_path):
    server.cuts = [1000, 500]
    assert (fetched(server, tmp_path) / "X.inter").read_text() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]


def test_fetch_dataset_goes_on_when_an_earlier_process_broke_off(server, tmp_path):
    (tmp_path / "X.zip.part").write_bytes(server.content[:7000])
    assert (fetched(server, tmp_path) / "X.inter").read_text() == CONTENT
    assert server.asked == ["bytes=7000-"]


@pytest.mark.parametrize("length", [3000, 10_000_000])
def test_fetch_dataset_begins_anew_when_what_was_there_is_something_else(length, server, tmp_path):
    (tmp_path / "X.zip.part").write_bytes(b"x" * length)
    assert (fetched(server, tmp_path) / "X.inter").read_text() == CONTENT
    assert server.asked == [f"bytes={length}-", None]


def test_fetch_dataset_takes_the_whole_when_the_server_knows_no_ranges(server, tmp_path):
    server.ranges, server.cuts = False, [1000]
    assert (fetched(server, tmp_path) / "X.inter").read_text() == CONTENT
    assert server.asked == [None, "bytes=1000-"]


def test_fetch_dataset_asks_again_when_the_server_is_busy(server, tmp_path):
    server.status = [503, 429]
    assert (fetched(server, tmp_path) / "X.inter").read_text() == CONTENT


def test_fetch_dataset_unpacks_when_an_earlier_process_had_fetched_all(server, tmp_path):
    (tmp_path / "X.zip.part").write_bytes(server.content)
    assert (fetched(server, tmp_path) / "X.inter").read_text() == CONTENT
    assert server.asked == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>Moved</html>", "no zip archive, or a damaged one"),
        (zipped({"a/notes.txt": "x"}), "no .inter file, but a/notes.txt"),
        (zipped({"a/a.inter": "x", "b/b.inter": "y"}), "two files for X.inter"),
        (zipped(LAYOUT).replace(b"1400000007", b"1400000008"), "no zip archive, or a damaged"),
    ],
)
def test_fetch_dataset_refuses_when_the_content_is_wrong(content, message, server, tmp_path):
    server.content = content
    with pytest.raises(UserError, match=message) as refused:
        fetched(server, tmp_path)
    assert files_in(tmp_path) <= {".X.lock"}
    for way in ("put X.inter there", "recbole-etegrec prepare amazon", "--data_path=DIR"):
        assert way in str(refused.value)
    assert "\n" not in str(refused.value)


def test_fetch_dataset_refuses_when_an_archive_unpacks_to_too_much(server, tmp_path, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("X/X.inter", "\n".join([HEADER, "0" * 2**20]))
    monkeypatch.setattr(archives, "SMALL", 2**19)
    server.content = packed.getvalue()
    with pytest.raises(UserError, match=r"bytes unpack to 1,048,\d+ or more, and no table"):
        fetched(server, tmp_path)
    assert not list(tmp_path.rglob("*.inter")) and not list(tmp_path.rglob("*.part"))


def test_fetch_dataset_refuses_at_once_when_there_is_no_such_archive(server, tmp_path):
    server.status = [404]
    with pytest.raises(UserError, match="HTTP Error 404: Not Found"):
        fetched(server, tmp_path)
    assert server.asked == [None]


def test_fetch_dataset_refuses_when_the_server_stands_still(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.stall, server.cuts = True, [100] + [0] * 9
    with pytest.raises(UserError, match="timed out"):
        fetched(server, tmp_path)
    assert (tmp_path / "X.zip.part").stat().st_size == 100  # to go on with another day
    assert len(server.asked) == 1 + download.ATTEMPTS


def test_fetch_dataset_refuses_when_no_server_answers(server, tmp_path):
    with pytest.raises(UserError, match="Connection refused"):
        fetched(server, tmp_path, download="http://127.0.0.1:9/a.zip")


def test_fetch_dataset_keeps_what_lies_in_the_folder_when_it_has_no_atomic_file(server, tmp_path):
    (tmp_path / "X").mkdir()
    (tmp_path / "X" / "X.npy").write_text("vectors")
    fetched(server, tmp_path)
    assert files_in(tmp_path) == {"X/X.inter", "X/X.item", "X/X.npy"}


def test_fetch_dataset_fetches_once_when_two_ask_together(server, tmp_path):
    threads = [threading.Thread(target=fetched, args=(server, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert server.asked == [None]
    assert files_in(tmp_path) == {"X/X.inter", "X/X.item"}


def test_fetch_dataset_keeps_the_parts_apart_when_an_archive_is_split(server, tmp_path):
    server.content = zipped({f"s/s.{part}.inter": part for part in ("train", "test")})
    fetched(server, tmp_path)
    assert files_in(tmp_path) == {"X/X.train.inter", "X/X.test.inter"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["ml-1.0.inter", "ml-1.0.item"], {"X/X.inter", "X/X.item"}),
        (["v.1.2.train.inter", "v.1.2.test.inter"], {"X/X.train.inter", "X/X.test.inter"}),
        (["v.1.train.inter", "v.1.item"], {"X/X.train.inter", "X/X.item"}),
    ],
)
def test_fetch_dataset_finds_the_name_when_it_has_dots(names, expected, server, tmp_path):
    server.content = zipped({f"some.folder/{name}": name for name in names})
    fetched(server, tmp_path)
    assert files_in(tmp_path) == expected


def test_config_names_an_archive_of_recboles_list_when_the_dataset_has_one(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(download, "fetch", lambda url, *_: asked.append(url))
    monkeypatch.setattr(download, "unpack", lambda path, folder: path.write_bytes(b""))
    folder = download.Path(__file__).parents[2] / "properties" / "dataset"
    names = [file.stem for file in folder.glob("*.yaml") if file.stem != "ml-100k"]
    assert {"Beauty", "Toys", "Sports", "Video_Games"} <= set(names)
    for name in [*names, "ml-1m"]:
        config = Config("Pop", name, config_dict={"data_path": str(tmp_path)})
        assert "download" not in config.inputs
        download.fetch_dataset(config)
    assert len(set(asked)) == len(names) + 1
    assert any(url.endswith("/Amazon_Beauty.zip") for url in asked)
    assert any(url.endswith("/ml-1m.zip") for url in asked)


def test_fetch_dataset_refuses_when_no_archive_has_that_name(tmp_path):
    values = {"data_path": str(tmp_path), "download": "amazon-beuty"}
    with pytest.raises(UserError, match="did you mean 'amazon-beauty'"):
        download.fetch_dataset(Config("Pop", "X", config_dict=values))


def test_beauty_is_unchanged_when_filtered_to_its_core(caplog):
    config = Config("ETEGRecLlama", "Beauty", config_dict={"data_path": beauty_path()})
    dataset = create_dataset(config)
    check_dataset_counts(dataset, config["dataset_counts"])
    assert not caplog.records
    assert (dataset.user_num - 1, dataset.item_num - 1) == (22_363, 12_101)
    assert len(dataset.inter_feat) == 198_502


def test_check_dataset_counts_warns_when_the_version_is_another(tmp_path, caplog):
    histories = [list(range(6))] * 6 + [[0, 9]]  # the last user and item 9 are too rare
    write_interactions(tmp_path, "Toys", histories)
    config = Config("Pop", "Toys", config_dict={"data_path": str(tmp_path)})
    check_dataset_counts(create_dataset(config), config["dataset_counts"])
    assert "2 of 38 interactions are left out, by user_inter_num_interval" in caplog.text
    record = caplog.records[-1]
    assert "6 users (not 19412), 6 items (not 11924), 36 interactions" in record.getMessage()


def test_video_games_counts_a_repeated_purchase_once_when_loaded(tmp_path):
    # Before the 5-core is taken: the last user has five purchases, of four items.
    histories = [[0, 1, 2, 3, 4, 0]] * 6 + [[0, 1, 2, 3, 3]]
    write_interactions(tmp_path, "Video_Games", histories)
    config = Config("ETEGRecLlama", "Video_Games", config_dict={"data_path": str(tmp_path)})
    dataset = create_dataset(config)
    assert (dataset.user_num - 1, len(dataset.inter_feat)) == (6, 30)
    assert dataset.inter_feat["timestamp"].max() == 4  # the first of each is kept

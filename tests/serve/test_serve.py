"""The server on a loopback port: real requests, a real model, and clients that misbehave."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

import anyio  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from fastapi.responses import HTMLResponse  # noqa: E402

from recbole_etegrec import (  # noqa: E402
    add_items,
    export_run,
    load_run,
    recommend,
    remove_items,
    run,
)
from recbole_etegrec.cli import main  # noqa: E402
from recbole_etegrec.inference import Catalogue, explain  # noqa: E402
from recbole_etegrec.serve import command, limits, protocol, watched  # noqa: E402
from recbole_etegrec.serve.app import create_app  # noqa: E402
from recbole_etegrec.serve.batching import Batcher, BusyError  # noqa: E402
from recbole_etegrec.serve.command import make_server  # noqa: E402
from recbole_etegrec.serve.search import Search  # noqa: E402
from recbole_etegrec.storage.run_directory import RunDirectory  # noqa: E402
from tests.helpers import small_values  # noqa: E402

HISTORY = ["i3", "i4", "i5", "i6"]


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory) -> str:
    """The directory of a run on `tiny`; every second item has a title with a `<`."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(Path(tiny_data, "tiny"), folder / "tiny")
    rows = [f"i{n}\tTitle <{n}>" for n in range(0, 40, 2)]
    text = "\n".join(["item_id:token\ttitle:token_seq", *rows])
    (folder / "tiny" / "tiny.item").write_text(text + "\n")
    values = {"epochs": 0, "finetune_epochs": 2, "run_dir": str(folder / "run")}
    run("ETEGRecLlama", "tiny", config_dict=small_values(str(folder), **values))
    return str(folder / "run")


@pytest.fixture(scope="module")
def model(finished):
    return load_run(finished)[1]


@pytest.fixture(scope="module")
def catalogue(finished) -> Catalogue:
    return Catalogue.from_dataset(load_run(finished)[2])


@contextmanager
def serving(app) -> Iterator[httpx.Client]:
    """A client of a server in a thread of its own."""
    listener = command.bound_socket("127.0.0.1", "0")
    listener.listen()
    server = make_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=address, timeout=20, trust_env=False) as client:
            client.get("/health").raise_for_status()
            yield client
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def client(model, catalogue) -> Iterator[httpx.Client]:
    with serving(create_app(model, catalogue)) as client:
        yield client


def test_server_serves_items_that_are_added_to_its_run_until_they_are_removed(
    finished, model, catalogue, tmp_path, monkeypatch
):
    monkeypatch.setattr(watched, "SECONDS", 0.05)
    run_dir = shutil.copytree(finished, tmp_path / "run")
    new = tmp_path / "new.item"
    new.write_text("item_id:token\ttitle:token_seq\nnew1\tNew one\n")
    np.save(tmp_path / "new.npy", np.ones((1, model.item_embedding.shape[1])))

    def load() -> watched.Loaded:
        _, loaded, dataset, *_ = load_run(str(run_dir))
        return loaded, Catalogue.from_dataset(dataset)

    renew = watched.RunWatch(RunDirectory(run_dir), load)
    with serving(create_app(model, catalogue, renew=renew)) as client:
        items = client.get("/health").json()["items"]
        for change, more in (
            (lambda: add_items(str(run_dir), str(new), str(tmp_path / "new.npy")), 1),
            (lambda: remove_items(str(run_dir)), 0),
        ):
            change()
            for _ in range(200):
                if client.get("/health").json()["items"] == items + more:
                    break
                time.sleep(0.05)
            assert client.get("/health").json()["items"] == items + more
            asked = {"history": ["new1"] if more else ["i1"], "k": 3}
            assert len(items_of(client.post("/recommend", json=asked))) == 3
            assert len(client.get("/items?query=new1").json()["items"]) == more
        assert "does not know" in error_of(client.post("/recommend", json={"history": ["new1"]}))


@pytest.fixture
def gate(model, monkeypatch) -> threading.Event:
    """The model does not answer before this is set."""
    gate, ranked = threading.Event(), model.ranker.best

    def wait(*arguments):
        assert gate.wait(20)
        return ranked(*arguments)

    monkeypatch.setattr(model.ranker, "best", wait)
    return gate


def items_of(response: httpx.Response) -> list[dict]:
    assert response.status_code == 200, response.text
    return response.json()["items"]


def error_of(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    return response.json()["error"]


def assert_same(found: list[dict], expected: list[dict]) -> None:
    """Whether two answers are the same to rounding."""
    assert [item["item"] for item in found] == [item["item"] for item in expected]
    values = [[item["log_probability"] for item in items] for items in (found, expected)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def until(condition) -> None:
    """Wait until something is true."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# Answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 10, 30, 100])
@pytest.mark.parametrize("exclude", [False, True])
def test_server_answers_as_recommend_does_when_it_is_asked(k, exclude, client, model, catalogue):
    body = {"history": HISTORY, "k": k, "exclude_history": exclude}
    found = items_of(client.post("/recommend", json=body))
    expected = recommend(model, catalogue, [HISTORY], k, exclude_history=exclude)[0]
    assert len(found) == min(k, 36 if exclude else 40)
    assert_same(found, [item._asdict() for item in expected])
    assert [item["title"] for item in found] == [item.title for item in expected]


def test_server_explains_each_item_when_it_is_asked_to(client, model, catalogue):
    body = {"history": HISTORY, "k": 3, "explain": True}
    for item in items_of(client.post("/recommend", json=body)):
        steps = explain(model, catalogue, HISTORY, item["item"]).steps
        for found, expected in zip(item["steps"], steps, strict=True):
            assert len(found["alternatives"]) == len(expected.alternatives)
            choices = zip(
                [found["chosen"], *found["alternatives"]],
                [expected.chosen, *expected.alternatives],
                strict=True,
            )
            for one, other in choices:
                assert one["log_probability"] == pytest.approx(other.log_probability, abs=1e-5)
                assert {**one, "log_probability": 0} == other._replace(log_probability=0)._asdict()


def test_server_leaves_out_the_history_when_it_is_the_default(model, catalogue):
    with serving(create_app(model, catalogue, exclude_history=True)) as client:
        assert client.get("/health").json()["exclude_history"] is True
        body = {"history": HISTORY, "k": 40}
        found = {item["item"] for item in items_of(client.post("/recommend", json=body))}
        assert found.isdisjoint(HISTORY) and len(found) == 36
        body["exclude_history"] = False
        assert len(items_of(client.post("/recommend", json=body))) == 40
        body |= {"history": catalogue.tokens[1:], "exclude_history": True, "k": 5, "explain": True}
        assert items_of(client.post("/recommend", json=body)) == []


def test_serve_leaves_out_the_history_as_its_run_did_when_given_an_export(finished, tmp_path):
    out = str(tmp_path / "model")
    export_run(finished, out, {"exclude_history": True})
    assert command._load(out, {}).exclude is True
    assert command._load(out, {"exclude-history": "False"}).exclude is False


def test_requests_are_ranked_together_when_they_come_at_once(model, catalogue, gate):
    bodies = [
        {
            "history": [f"i{(n + step) % 40}" for step in range(1 + n)],
            "k": 3 + n % 5 + 30 * (n % 3 == 0),
            "exclude_history": n % 2 == 0,
            "explain": n % 3 == 1,
        }
        for n in range(20)
    ]
    with serving(create_app(model, catalogue)) as client, ThreadPoolExecutor(20) as pool:

        def count(name: str) -> float:
            return float(re.search(f"^{name} (.*)$", client.get("/metrics").text, re.M)[1])

        answers = [pool.submit(client.post, "/recommend", json=body) for body in bodies]
        until(lambda: count("etegrec_batch_size_sum") + count("etegrec_waiting") == 20)
        gate.set()
        found = [items_of(answer.result()) for answer in answers]
        assert count("etegrec_batch_size_count") == 2 and count("etegrec_batch_size_sum") == 20
        for body, items in zip(bodies, found, strict=True):
            assert_same(items, items_of(client.post("/recommend", json=body)))


def test_answers_are_not_held_back_when_a_connection_is_kept(client):
    started = time.monotonic()
    for _ in range(30):
        client.get("/health")
    assert time.monotonic() - started < 0.6  # Nagle's algorithm would hold back each for 40 ms


def test_items_are_found_when_their_words_are_asked_for(client):
    def tokens(**query):
        return [item["item"] for item in items_of(client.get("/items", params=query))]

    assert tokens(query="TITLE <1", limit=3) != tokens(query="", limit=3)
    assert sorted(tokens(query="title <1", limit=100)) == ["i10", "i12", "i14", "i16", "i18"]
    assert tokens(query="<12> tit") == ["i12"]
    assert tokens(query="i3")[0] == "i3" and "i33" in tokens(query="i3")
    assert tokens(query="no such") == []
    assert len(tokens(limit=7)) == 7
    first = Search(Catalogue(["", "a", "b", "c"], {"a": "of b", "b": "x", "c": "b, the"}))
    assert [item["item"] for item in first("b", 9)] == ["b", "c", "a"]
    popular = Search(Catalogue(["", "a1", "b", "a2", "c"], {"c": "of a"}, [0, 1, 5, 7, 9]))
    assert [item["item"] for item in popular("", 9)] == ["c", "a2", "b", "a1"]
    assert [item["item"] for item in popular("a", 9)] == ["a2", "a1", "c"]


def test_docs_list_all_requests_without_a_script(client):
    page = client.get("/docs").text
    paths = client.get("/openapi.json").json()["paths"]
    assert paths.keys() == {"/recommend", "/items", "/health", "/metrics"}
    for path, methods in paths.items():
        (method,) = methods
        assert f"{method.upper()} <code>{path}</code>" in page
    for field in (
        "<code>history</code>: array of strings, items at least 1, items at most 1000",
        "<code>k</code>: integer, at least 1, at most 100, default 10",
        "<code>exclude_history</code>: boolean",
        "<code>explain</code>: boolean, default false",
        "<code>query</code>: string, characters at most 200",
    ):
        assert f"<li>{field}</li>" in page
    assert not re.search("<script|https?://", page)


def test_metrics_tell_paths_and_statuses_when_requests_have_come(model, catalogue):
    with serving(create_app(model, catalogue)) as client:
        client.post("/recommend", json={"history": HISTORY})
        client.post("/recommend", json={"history": ["nobody"]})
        client.get("/elsewhere")
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    for path, status in (("/recommend", 200), ("/recommend", 422), ("other", 404)):
        assert f'etegrec_requests_total{{path="{path}",status="{status}"}} 1.0' in response.text
    assert 'etegrec_request_seconds_count{path="/recommend"} 2.0' in response.text
    assert 'etegrec_batch_size_bucket{le="1.0"} 1.0' in response.text


# Refusals -----------------------------------------------------------------------------------------

REFUSED = [
    ('{"history": ["i1"', 400, "body: not JSON"),
    ("[" * 100_000, 400, "body"),
    (b'{"history": ["\xff"]}', 400, "body"),
    ("", 422, "body: expected an object"),
    ('["i1"]', 422, "body: expected an object"),
    ("{}", 422, "history: Field required"),
    ('{"history": []}', 422, "history: List should have at least 1 item"),
    ('{"history": "i1"}', 422, "history: Input should be a valid list"),
    ('{"history": [1]}', 422, "history.0: Input should be a valid string"),
    (json.dumps({"history": ["i1"] * 1001}), 422, "history: List should have at most 1000"),
    ('{"history": ["i1", "x", "y", "x"]}', 422, "history: the model does not know x, y"),
    ('{"history": ["\\ud800"]}', 422, "history: the model does not know \\ud800"),
    (json.dumps({"history": ["z" * 999]}), 422, "zzz..."),
    (json.dumps({"history": [f"z{n}" for n in range(30)]}), 422, "z9 and 20 more"),
    ('{"history": ["i1"], "k": 0}', 422, "k: Input should be greater than or equal to 1"),
    ('{"history": ["i1"], "k": 101}', 422, "k: Input should be less than or equal to 100"),
    ('{"history": ["i1"], "k": 1e999}', 422, "k: Input should be a valid integer"),
    ('{"history": ["i1"], "k": "3"}', 422, "k: Input should be a valid integer"),
    ('{"history": ["i1"], "k": 21, "explain": true}', 422, "k: at most 20 items are explained"),
    ('{"history": ["i1"], "explain": "yes"}', 422, "explain: Input should be a valid boolean"),
    ('{"history": ["i1"], "top": 3}', 422, "top: Extra inputs are not permitted"),
    ('{"history": ["' + "i" * 300_000 + '"]}', 413, "body: larger than 256 KiB"),
]


@pytest.mark.parametrize(("body", "status", "sentence"), REFUSED)
def test_request_is_refused_in_one_sentence_when_it_is_wrong(body, status, sentence, client):
    headers = {"content-type": "application/json"}
    response = client.post("/recommend", content=body, headers=headers)
    assert response.status_code == status
    error = error_of(response)
    assert sentence in error and "\n" not in error and len(error) < 300
    assert client.get("/health").json()["status"] == "ok"


def test_request_is_refused_when_it_is_another_than_there_is(client):
    form = client.post("/recommend", content='{"history": ["i1"]}', headers={"content-type": "a/b"})
    assert form.status_code == 422 and "application/json" in error_of(form)
    assert client.get("/recommend").status_code == 405
    assert client.get("/nothing").status_code == 404
    assert "limit" in error_of(client.get("/items", params={"limit": 1000}))
    assert "query" in error_of(client.get("/items", params={"query": "x" * 201}))


def test_body_is_refused_when_it_is_too_large_without_saying_so(client):
    response = client.post("/recommend", content=(b" " * 1000 for _ in range(300)))
    assert response.status_code == 413


@contextmanager
def raw(client: httpx.Client) -> Iterator[socket.socket]:
    address = client.base_url.host, client.base_url.port
    with socket.create_connection(address, timeout=10) as connection:
        yield connection


def test_client_is_hung_up_on_when_its_body_does_not_come(client, monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.3)
    head = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with raw(client) as connection:
        connection.sendall(head + b"Content-Length: 50\r\n\r\n{")
        answer = connection.makefile("rb").read()  # to the end: the server closes
    assert answer.startswith(b"HTTP/1.1 408") and b"body: not there after 0.3 s" in answer
    assert client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("before", [b"", b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_client_is_hung_up_on_when_its_head_does_not_end(before, client, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    with raw(client) as connection:
        connection.sendall(before)
        assert not before or connection.recv(4096).startswith(b"HTTP/1.1 404")
        started = time.monotonic()
        connection.sendall(b"GET /hea")
        connection.makefile("rb").read()  # to the end: the server closes
        assert time.monotonic() - started < 3
    with raw(client) as connection:
        assert before or connection.recv(4096) == b""  # nor does it begin
    assert client.get("/health").json()["status"] == "ok"


def test_server_says_so_at_once_when_too_many_wait(model, catalogue, gate):
    app = create_app(model, catalogue, batch=2, room=3)
    with serving(app) as client, ThreadPoolExecutor(8) as pool:
        body = {"history": HISTORY}
        first = pool.submit(client.post, "/recommend", json=body)
        until(lambda: "etegrec_batch_size_count 1.0" in client.get("/metrics").text)
        waiting = [pool.submit(client.post, "/recommend", json=body) for _ in range(3)]
        until(lambda: "etegrec_waiting 3.0" in client.get("/metrics").text)
        refused = client.post("/recommend", json=body)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert "too many requests" in error_of(refused)
        assert client.get("/health").json()["status"] == "ok"  # though the model is busy
        assert items_of(client.get("/items"))
        gate.set()
        for answer in (first, *waiting):
            assert len(items_of(answer.result())) == 10
        assert len(items_of(client.post("/recommend", json=body))) == 10


def test_server_goes_on_when_the_model_fails(model, catalogue, monkeypatch, caplog):
    with serving(create_app(model, catalogue)) as client:
        with monkeypatch.context() as broken:
            broken.setattr(model.ranker, "best", None)
            response = client.post("/recommend", json={"history": HISTORY})
            assert response.status_code == 500 and "the model failed" in error_of(response)
        assert "a batch of 1 failed" in caplog.text
        assert len(items_of(client.post("/recommend", json={"history": HISTORY}))) == 10


def test_batcher_forgets_a_question_when_nobody_waits_for_it():
    seen, gate = [], threading.Event()

    def work(questions):
        assert gate.wait(10)
        seen.append(questions)
        return [2 * question for question in questions]

    async def ask():
        async with Batcher(work, size=3, room=4, seen=lambda size: None) as batcher:
            first = asyncio.create_task(batcher.ask(0))
            await asyncio.sleep(0.05)  # alone on the way
            rest = [asyncio.create_task(batcher.ask(number)) for number in range(1, 5)]
            await asyncio.sleep(0)
            with pytest.raises(BusyError):
                await batcher.ask(5)
            rest[1].cancel()
            await asyncio.sleep(0)
            gate.set()
            return await asyncio.gather(first, rest[0], *rest[2:])

    assert asyncio.run(ask()) == [0, 2, 6, 8]
    assert seen == [[0], [1, 3], [4]]


# The command --------------------------------------------------------------------------------------


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server in a process of its own, and its address."""
    code = "import sys; from recbole_etegrec.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"serving 40 items on (http://[^/]+/)", line)
        assert found, line + process.stderr.read()
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (["localhost"], 200),
        (["LOCALHOST:81"], 200),
        (["127.0.0.1:8000"], 200),
        (["[::1]:8000"], 200),
        (["shop.example"], 200),
        (["elsewhere.example"], 421),
        (["localhost.elsewhere.example"], 421),
        (["127.0.0.1.elsewhere.example"], 421),
        (["localhost@elsewhere.example"], 421),
        (["elsewhere.example/localhost"], 421),
        (["localhost:80:80"], 421),
        (["localhost:x"], 421),
        (["127.0.0.2"], 421),
        ([""], 421),
        (["localhost", "elsewhere.example"], 421),
        ([], 421),
    ],
)
def test_server_answers_to_the_names_of_its_hosts_alone(given, status):
    hosts = command.known_hosts("localhost", "127.0.0.1", {"shop.example"})
    passed = []

    async def app(*_) -> None:
        passed.append(200)

    async def send(message) -> None:
        passed.append(message.get("status", "body"))

    headers = [(b"host", name.encode()) for name in given]
    scope = {"type": "http", "method": "POST", "path": "/recommend", "headers": headers}
    anyio.run(limits.KnownHost(app, hosts), scope, None, send)
    assert passed == ([200] if status == 200 else [421, "body"])


def test_server_refuses_a_strange_host_on_every_path(model, catalogue):
    hosts = command.known_hosts("127.0.0.1", "127.0.0.1", set())
    with serving(create_app(model, catalogue, hosts=hosts)) as client:
        for path in ("/", "/items", "/health", "/metrics", "/none"):
            answer = client.get(path, headers={"Host": "elsewhere.example"})
            assert answer.status_code == 421
            assert answer.json()["error"].startswith("host: not a name of this server")
        assert "421" in client.get("/metrics").text


def test_known_hosts_are_any_when_the_address_is_not_of_loopback_and_none_is_named():
    assert command.known_hosts("0.0.0.0", "0.0.0.0", set()) is None
    named = command.known_hosts("0.0.0.0", "0.0.0.0", {"a.example"})
    assert {"a.example", "localhost", "[::1]"} <= named
    assert "[::1]" in command.known_hosts("::1", "::1", set())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_ends_with_its_answers_given_when_a_signal_comes(number, finished, tmp_path):
    directory, arguments = finished, []
    if number == signal.SIGINT:
        directory, arguments = str(tmp_path / "model"), ["--host=0.0.0.0", "--exclude-history"]
        export_run(finished, directory)
    with started(directory, "--port=0", *arguments) as (process, address):
        address = address.replace("0.0.0.0", "127.0.0.1")
        body = {"history": HISTORY, "k": 10, "explain": True}
        every = {"history": HISTORY, "k": 40}
        first = httpx.post(f"{address}recommend", json=every, trust_env=False)
        assert {item["item"] for item in items_of(first)}.isdisjoint(HISTORY) == bool(arguments)
        with ThreadPoolExecutor(12) as pool:
            ask = {"json": body, "trust_env": False, "timeout": 20}
            answers = [pool.submit(httpx.post, f"{address}recommend", **ask) for _ in range(12)]
            until(lambda: any(answer.done() for answer in answers))
            process.send_signal(number)
            statuses = [answer.result().status_code for answer in answers if not answer.exception()]
        assert statuses and set(statuses) == {200}  # others had not been let in yet
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert f"{signal.Signals(number).name}: the server has ended" in errors
    assert ("there is no authentication" in errors) == bool(arguments)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_serve_is_refused_in_one_line_when_it_cannot_start(finished, tmp_path, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}: Address already in use" in refused(capsys, finished, f"--port={port}")
    assert "port (http)" in refused(capsys, finished, "--port=http")
    assert "port (70000)" in refused(capsys, finished, "--port=70000")
    assert "host (no.invalid)" in refused(capsys, finished, "--host=no.invalid")
    assert "host 192.0.2.1" in refused(capsys, finished, "--host=192.0.2.1")  # of no machine
    assert "no config.yaml" in refused(capsys, str(tmp_path), "--port=0")
    (tmp_path / "config.json").write_text("{}")
    assert "unknown argument --top" in refused(capsys, str(tmp_path), "--top=1")
    assert "no model.safetensors" in refused(capsys, str(tmp_path), "--port=0")
    (tmp_path / "config.yaml").write_text("model: BPR\ndataset: tiny\n")
    assert "a run of BPR" in refused(capsys, str(tmp_path), "--port=0")
    assert "expected the directory" in refused(capsys)
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert "pip install 'recbole-etegrec[serve]'" in refused(capsys, finished)


# The page -----------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)

DRIVE = """
<script>
const tick = () => new Promise(done => setTimeout(done, 50));
async function until(found) {
  for (let n = 0; n < 100; n++) { if (found()) return found(); await tick(); }
  throw new Error(`never: ${found}`);
}
const all = selector => [...document.querySelectorAll(selector)];
async function drive() {
  await until(() => all("#top > li").length === 10);
  byId("query").value = "i5";
  byId("query").dispatchEvent(new Event("input"));
  (await until(() => all("#found button").length === 1 && all("#found button")[0])).click();
  await until(() => all("#top > li").length === 9);
  all("#history button")[0].click();
  await until(() => all("#top > li").length === 10);
  byId("clear").click();
  await until(() => all("#top > li").length === 0 && location.search === "?query=i5");
  all("#found button")[0].click();
  await until(() => all("#top > li").length === 10);
  byId("exclude").click();
  await until(() => location.search === "?history=i5&exclude=0&query=i5");
}
drive().then(() => "driven", error => `${error}`).then(text => document.title = text);
</script>
"""


def dumped(address: str, folder: Path) -> str:
    """The page of an address once its scripts have run, as Chromium holds it."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", f"--user-data-dir={folder}"]
    command = [CHROMIUM, *flags, "--virtual-time-budget=10000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_page_shows_what_is_recommended_when_a_history_is_built(client, tmp_path):
    page = dumped(f"{client.base_url}/?history=i3,i%34&query=%3C12&exclude=0", tmp_path)
    found = items_of(client.post("/recommend", json={"history": ["i3", "i4"]}))
    names = re.findall(r'<summary>.*?class="name">([^<]*)<', page)
    expected = [item["title"] or item["item"] for item in found]
    assert [name.replace("&lt;", "<").replace("&gt;", ">") for name in names] == expected
    assert page.count('<tr class="chosen">') == 40  # four codes of each item
    assert "Add Title &lt;12&gt;" in page or 'aria-label="Add Title <12>"' in page
    assert re.search(r'role="alert" id="problem"></p>', page)
    unknown = dumped(f"{client.base_url}/?history=i3,nobody", tmp_path)
    assert "Error: history: the model does not know nobody" in unknown


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_page_shows_a_score_and_its_parts_when_it_is_a_sum(client, tmp_path):
    parts = {"codes": (1.0, -11.75), "item head": (0.5, -5.0)}
    parts = {name: {"weight": w, "log_probability": p} for name, (w, p) in parts.items()}
    item = {"item": "a", "title": "A", "log_probability": -14.25, "parts": parts, "steps": []}
    app, page = FastAPI(), client.get("/").text
    app.get("/")(lambda: HTMLResponse(page))
    app.get("/health")(lambda: {"items": 1, "exclude_history": False})
    app.get("/items")(lambda: {"items": [{"item": "a", "title": "A"}]})
    app.post("/recommend")(lambda: {"items": [item]})
    with serving(app) as other:
        shown = dumped(f"{other.base_url}/?history=a", tmp_path)
    assert '<span class="chance">-14.25</span>' in shown
    assert [re.search(rf"{name}</th>(.*?)</tr>", shown)[1] for name in parts] == [
        '<td class="number">1</td><td class="number">-11.750</td>',
        '<td class="number">0.5</td><td class="number">-5.000</td>',
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_page_follows_when_it_is_clicked(model, catalogue, tmp_path):
    app = create_app(model, catalogue, exclude_history=True)

    @app.get("/driven")
    def driven():
        return HTMLResponse(client.get("/").text + DRIVE)

    with serving(app) as client:
        # All but ten items; DRIVE adds one of these, and takes one of the others away.
        left = {f"i{number}" for number in range(1, 20, 2)}
        tokens = ",".join(token for token in catalogue.tokens[1:] if token not in left)
        page = dumped(f"{client.base_url}/driven?history={tokens}", tmp_path)
    assert re.search("<title>(.*)</title>", page)[1] == "driven"

"""`recbole-etegrec serve`: the model of a run or an export, until Ctrl-C or SIGTERM ends it."""

import ipaddress
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from recbole_etegrec.errors import Interrupted, UserError
from recbole_etegrec.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from recbole_etegrec.inference.catalogue import Catalogue
    from recbole_etegrec.inference.command import LoadedRun
    from recbole_etegrec.model.protocol import RankingModel
    from recbole_etegrec.serve.watched import Loaded

_NEEDS = ("fastapi", "uvicorn", "prometheus_client")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_END_SECONDS = 10  # that requests may take to end once the server is to end


class _Served(NamedTuple):
    model: "RankingModel"
    catalogue: "Catalogue"
    exclude: bool  # items of a history, where a request does not say
    renew: "Callable[[], Loaded | None] | None" = None


def serve_command(directory: str, values: dict[str, str]) -> None:
    """Serve until a signal comes.

    Args:
        directory: of a run, or of an exported model.
        values: the arguments by their names; those that are not the command's override keys of
            the run's config.

    Raises:
        UserError: anything the user can mend.
        Interrupted: a signal has ended the server.
    """
    host, port = values.pop("host", "127.0.0.1"), values.pop("port", "8000")
    allowed = {name.strip().lower() for name in values.pop("allowed-hosts", "").split(",")} - {""}
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs {missing[0]}: pip install 'recbole-etegrec[serve]'")
    with _interruptions(), bound_socket(host, port) as listener:
        served = _load(directory, values)

        from recbole_etegrec.serve.app import create_app

        address, number = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        hosts = known_hosts(host, address, allowed)
        app = create_app(
            served.model, served.catalogue, served.exclude, hosts=hosts, renew=served.renew
        )
        server = make_server(app)
        listener.listen()
        if not ipaddress.ip_address(address).is_loopback:
            pages = ", pages of other sites in their browsers too" if hosts is None else ""
            sys.stderr.write(
                f"warning: host {host}: whoever reaches this address may ask{pages}, for there is "
                "no authentication; --allowed-hosts=NAME,... limits the names it is called by\n"
            )
        items = len(served.catalogue) - 1
        sys.stdout.write(f"serving {items} items on http://{shown}:{number}/ (Ctrl-C ends it)\n")
        sys.stdout.flush()
        server.run(sockets=[listener])


def known_hosts(host: str, address: str, allowed: Set[str]) -> Set[str] | None:
    """The names that requests may have in ``Host``; None for any.

    On loopback these are the names of loopback and those `allowed`; elsewhere the server cannot
    know its names, so any will do unless some are `allowed`.
    """
    if not allowed and not ipaddress.ip_address(address).is_loopback:
        return None
    names = {host.lower(), address, *allowed, *_LOOPBACK}
    return {f"[{name}]" if ":" in name and name[0] != "[" else name for name in names}


def make_server(app: "FastAPI") -> "uvicorn.Server":
    """The server of an application, to be run with a socket."""
    import uvicorn

    from recbole_etegrec.serve.protocol import TimedProtocol

    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_END_SECONDS,
    )
    return uvicorn.Server(config)


@contextmanager
def _interruptions() -> Iterator[None]:
    """Raise `Interrupted` for signals; the running server handles them first and passes them on."""

    def end(number: int, _frame) -> None:
        raise Interrupted(number, "the server has ended")

    former = {number: signal.signal(number, end) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def bound_socket(host: str, port: str) -> socket.socket:
    """Bind a socket before anything is loaded, so that a taken address is known at once.

    Raises:
        UserError: there is no such address, or it is taken.
    """
    if not port.isdecimal() or int(port) > 65535:
        raise UserError(f"port ({port}): must be a number up to 65535")
    try:
        *kind, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        # Of TCP by name: asyncio turns off Nagle's delays, 40 ms an answer, where it knows that.
        listener = socket.socket(*kind)
    except OSError as error:
        raise UserError(f"host ({host}): {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(f"host {host}, port {port}: {error.strerror}; choose others") from error
    return listener


def _load(directory: str, values: dict[str, str]) -> _Served:
    from recbole_etegrec.inference.command import open_run
    from recbole_etegrec.serve.answers import warm_up
    from recbole_etegrec.serve.watched import RunWatch

    def open_merged() -> "LoadedRun":
        run = open_run(directory, dict(values), exported=True)
        merge = getattr(run.model, "merge_adapters", None)
        if merge is not None:  # as in an export: half as many matrix products
            merge()
        return run

    def load() -> "Loaded":
        run = open_merged()
        return run.model, run.catalogue

    path = RunDirectory(directory)
    # Made before the first look at what was added.
    watch = RunWatch(path, load) if path.config.is_file() else None
    run = open_merged()
    warm_up(run.model)
    return _Served(run.model, run.catalogue, run.exclude, watch)

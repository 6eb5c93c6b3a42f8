"""The paths of the server: requests are checked and answers are worded here.

An error is ``{"error": "one sentence"}`` with a status of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Set
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi import Query as Parameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from recbole_etegrec import __version__
from recbole_etegrec.inference.catalogue import Catalogue, cut
from recbole_etegrec.model.protocol import RankingModel
from recbole_etegrec.serve.answers import Query
from recbole_etegrec.serve.batching import Batcher, BusyError, WorkError
from recbole_etegrec.serve.docs import docs_page
from recbole_etegrec.serve.limits import KnownHost, Measured, WholeBody
from recbole_etegrec.serve.metrics import Metrics
from recbole_etegrec.serve.watched import Loaded, Question, Served

HISTORY, K, EXPLAINED = 1000, 100, 20  # of a request at most: items, items asked for, explained
BATCH, ROOM = 32, 256  # requests that are ranked at once, and that wait, at most
_NAMED = 10  # unknown items that an error names
_PAGE = Path(__file__).with_name("page.html")
_PAGE_MAY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Asked(BaseModel):
    """The body of ``POST /recommend``."""

    model_config = ConfigDict(strict=True, extra="forbid")

    history: Annotated[list[str], Field(min_length=1, max_length=HISTORY)]
    k: Annotated[int, Field(ge=1, le=K)] = 10
    exclude_history: bool | None = None
    explain: bool = False


def create_app(
    model: RankingModel,
    catalogue: Catalogue,
    exclude_history: bool = False,
    batch: int = BATCH,
    room: int = ROOM,
    hosts: Set[str] | None = None,
    renew: Callable[[], Loaded | None] | None = None,
) -> FastAPI:
    """The application around a model.

    Args:
        exclude_history: the value for requests that name none.
        batch: the most requests that are ranked at once.
        room: the most requests that wait for the model.
        hosts: the names that a request may call this server by, see `KnownHost`; None: any.
        renew: gives a model and its items to serve from now on, where there are others.

    Raises:
        UserError: model and catalogue are not of the same items.
    """
    metrics = Metrics()
    served = Served(model, catalogue, renew)
    batcher = Batcher(served.answer, batch, room, metrics.batch)
    metrics.waiting.set_function(lambda: batcher.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with batcher:
            watch = asyncio.create_task(served.watch())
            yield
            watch.cancel()

    app = FastAPI(
        title="recbole-etegrec",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages would load scripts from elsewhere; `docs.py` has another
        redoc_url=None,
    )
    _add_errors(app)
    _add_ranking(app, batcher, served, exclude_history)
    _add_reading(app, served, metrics, exclude_history)
    paths = tuple(path for route in app.routes if (path := getattr(route, "path", None)))
    app.add_middleware(WholeBody)
    if hosts is not None:
        app.add_middleware(KnownHost, names=hosts)
    app.add_middleware(Measured, metrics=metrics, paths=paths)
    return app


# Paths --------------------------------------------------------------------------------------------


def _add_ranking(app: FastAPI, batcher: Batcher, served: Served, exclude_history: bool) -> None:
    @app.post("/recommend")
    async def recommend(asked: Asked) -> Response:
        """Rank items after a history of item tokens, oldest first; explain: with their codes."""
        if asked.explain and asked.k > EXPLAINED:
            raise HTTPException(422, f"k: at most {EXPLAINED} items are explained, not {asked.k}")
        by = served.answers
        history, unknown = by.catalogue.find(asked.history)
        if unknown:
            raise HTTPException(422, f"history: the model does not know {_list(unknown)}")
        exclude = exclude_history if asked.exclude_history is None else asked.exclude_history
        query = Query(history, asked.k, exclude, asked.explain)
        return JSONResponse({"items": await batcher.ask(Question(by, query))})


def _add_reading(app: FastAPI, served: Served, metrics: Metrics, exclude_history: bool) -> None:
    html = _PAGE.read_text("utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": _PAGE_MAY})

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(
            docs_page(app.openapi()), headers={"Content-Security-Policy": _PAGE_MAY}
        )

    # Not async, so that a large catalogue is searched in a thread.
    @app.get("/items")
    def items(
        query: Annotated[str, Parameter(max_length=200)] = "",
        limit: Annotated[int, Parameter(ge=1, le=K)] = 20,
    ) -> Response:
        """Find items by words of their titles or by their tokens; without a query, popular ones."""
        return JSONResponse({"items": served.search(query, limit)})

    @app.get("/health")
    async def health() -> Response:
        """Say that the server is up, and how many items it knows."""
        items = len(served.catalogue) - 1
        return JSONResponse({"status": "ok", "exclude_history": exclude_history, "items": items})

    @app.get("/metrics")
    async def counts() -> Response:
        """Give figures for Prometheus."""
        return Response(metrics.text(), media_type=metrics.media_type)


def _list(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(map(cut, names[:_NAMED])) + (f" and {more} more" if more > 0 else "")


# Errors -------------------------------------------------------------------------------------------


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            reason = f"not JSON ({first['ctx']['error']}, character {first['loc'][-1]})"
            return _error(400, f"body: {reason}")
        if first["loc"] == ("body",):
            return _error(
                422,
                'body: expected an object such as {"history": ["item"]}, sent as application/json',
            )
        where = ".".join(map(str, first["loc"][1:]))
        return _error(422, f"{where}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(BusyError)
    async def busy(*_) -> Response:
        return _error(503, "too many requests are waiting: try again", {"Retry-After": "1"})

    @app.exception_handler(WorkError)
    async def failed(*_) -> Response:
        return _error(500, "the model failed: the server's log says why")

    @app.exception_handler(Exception)
    async def broken(*_) -> Response:
        return _error(500, "the server failed: its log says why")


def _error(status: int, sentence: str, headers: Any = None) -> Response:
    # What a client sent may hold halves of surrogate pairs, which JSON can say and UTF-8 cannot.
    printable = sentence.encode("utf-8", "replace").decode("utf-8")
    return JSONResponse({"error": printable}, status, headers)

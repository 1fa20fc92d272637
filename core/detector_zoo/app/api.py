"""The HTTP interface for programs, documented in docs/http-api.md: routes under ``/api/v1``.

Handlers only take requests apart and put answers together; the work is `Analyst`'s, in threads, at most
``Options.concurrency`` at a time. A request's body is kept in memory: nothing is written anywhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.routing import Route

from detector_zoo import __version__, heatmaps
from detector_zoo.app.analysis import PERTURBATIONS, Analyst
from detector_zoo.app.options import Options
from detector_zoo.app.problems import Problem, Receive, Scope, Send, problem_of
from detector_zoo.errors import ZooError
from detector_zoo.evaluation.perturbations import GRID
from detector_zoo.plain import one_line

__all__ = ["LAUNDERINGS", "PREFIX", "install"]

PREFIX = "/api/v1"
LAUNDERINGS = tuple(spec for spec in GRID if not spec.endswith(":1.5"))
"""Perturbations that a client may ask for: those of the audit's grid that make a picture no larger."""
MAX_LAUNDERINGS = 8

_MAX_FILES, _MAX_FIELDS = 3, 64
_FIELD_BYTES = 1024
"""A whole number of kilobytes: in those Starlette's message tells it."""

_T = TypeVar("_T")

Picture = Annotated[UploadFile, File(description="The image file, as it is.")]
Detectors = Annotated[
    list[str], Form(description="method or method.tag; repeatable. None, or all, for every detector that is loaded.")
]


class _Form(Request):
    """A request whose multipart body is parsed in memory, within bounds, whatever its files' sizes are."""

    async def parse(self) -> None:
        """Read the body.

        Raises:
            Problem: It is no form, or not a valid one.
        """
        if not self.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise Problem(
                "UnsupportedMediaType", "the body must be multipart/form-data", hint="curl -F file=@photo.jpg"
            )
        # FastAPI would parse it with Starlette's own settings, which write files of more than a megabyte to disk.
        parser = MultiPartParser(
            self.headers, self.stream(), max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=_FIELD_BYTES
        )
        parser.spool_max_size = 1 << 40
        try:
            self.parsed = await parser.parse()
        except (MultiPartException, KeyError, ValueError) as error:
            raise Problem("InvalidRequest", f"the body cannot be parsed: {one_line(error)}") from error

    async def form(self, **_: Any) -> FormData:  # type: ignore[override]
        """What `parse` found; called by FastAPI."""
        return self.parsed


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def with_form(request: Request) -> Response:
            if request.method != "POST":
                return await handler(request)
            form = _Form(request.scope, request.receive)
            await form.parse()
            return await handler(form)

        return with_form


class _Rest:
    """What is left of the interface's paths: refused here, because a page that is mounted behind has other forms.

    Args:
        methods: Known paths, with the methods that they take.
    """

    def __init__(self, methods: Mapping[str, Collection[str]]) -> None:
        self.methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if (allowed := self.methods.get(scope["path"])) is None:
            raise HTTPException(404)
        raise HTTPException(405, headers={"allow": ", ".join(sorted(allowed))})


def install(app: Any, analyst: Analyst, options: Options) -> None:
    """Add the routes, and answers of one form for whatever goes wrong, to a FastAPI application."""
    router = _router(analyst, options)
    routes = [route for route in (*app.routes, *router.routes) if isinstance(route, Route)]
    app.include_router(router)
    app.add_route(
        f"{PREFIX}{{rest:path}}", _Rest({route.path: route.methods or () for route in routes}), include_in_schema=False
    )
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)


def _router(analyst: Analyst, options: Options) -> APIRouter:
    router = APIRouter(prefix=PREFIX, route_class=_Route)
    limiter: list[anyio.CapacityLimiter] = []

    async def work(function: Callable[[], _T]) -> _T:
        if not limiter:  # belongs to the event loop, which does not run yet when the router is made
            limiter.append(anyio.CapacityLimiter(options.concurrency))
        return await anyio.to_thread.run_sync(function, limiter=limiter[0])

    @router.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the server lives."""
        return {"status": "ok", "version": __version__}

    @router.get("/detectors")
    async def detectors() -> dict[str, Any]:
        """What is loaded, with what is known of each, and what ``launder`` takes."""
        return {
            "detectors": [served.to_dict() for served in analyst.detectors],
            "perturbations": list(LAUNDERINGS),
            "skipped": list(analyst.skipped),
        }

    @router.post("/score")
    async def score(file: Picture, detector: Detectors = []) -> JSONResponse:  # noqa: B006  FastAPI copies it
        """Verdicts on one image, facts of the file, and what not to conclude."""
        chosen = _chosen(analyst, detector)
        found = await work(lambda: analyst.analyse(file.file.read(), file.filename or "", chosen))
        return _answer(found.to_dict())

    @router.post("/launder")
    async def launder(
        file: Picture,
        detector: Detectors = [],  # noqa: B006
        perturbation: Annotated[list[str], Form()] = list(PERTURBATIONS),  # noqa: B006
    ) -> JSONResponse:
        """Whether the verdicts survive re-encoding, resizing, blurring."""
        chosen, tried = _chosen(analyst, detector), _perturbations(perturbation)
        found = await work(lambda: analyst.launder(file.file.read(), chosen, tried, file.filename or ""))
        return _answer(found.to_dict())

    @router.post("/exchange")
    async def exchange(
        original: Picture,
        edited: Picture,
        mask: Annotated[UploadFile, File(description="Of the same size, white where the edit is.")],
        detector: Detectors = [],  # noqa: B006
        picture: Annotated[bool, Form(description="Send the exchanged picture too, as PNG in base64.")] = False,
    ) -> JSONResponse:
        """Verdicts on an edit, on its original, and on the edit with the original's pixels outside the mask."""
        chosen = _chosen(analyst, detector)

        def run() -> dict[str, Any]:
            found = analyst.exchange(original.file.read(), edited.file.read(), mask.file.read(), chosen)
            made = base64.b64encode(_png(found.image)).decode("ascii") if picture else None
            return found.to_dict() | {"picture": made}

        return _answer(await work(run))

    @router.post("/heatmap", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    async def heatmap(
        file: Picture,
        detector: Annotated[str, Form()],
        opacity: Annotated[float, Form(ge=0, le=1)] = 0.6,
    ) -> Response:
        """Where one detector finds its evidence: the picture in grey, red where it looks generated; PNG."""
        (chosen,) = analyst.check([detector])
        if not any(served.localizes for served in analyst.detectors if served.name == chosen):
            able = ", ".join(served.name for served in analyst.detectors if served.localizes)
            raise Problem("NoHeatmap", f"{chosen} has no heatmap", hint=f"these have one: {able}" if able else None)

        def run() -> bytes:
            found = analyst.heatmap(file.file.read(), chosen, file.filename or "")
            return _png(heatmaps.overlay(found.image, found.heat, opacity))

        return Response(await work(run), media_type="image/png", headers={"cache-control": "no-store"})

    return router


def _chosen(analyst: Analyst, detectors: Sequence[str]) -> list[str] | None:
    """What to ask, checked before the picture is decoded; None for all."""
    return None if not detectors or "all" in detectors else analyst.check(detectors)


def _perturbations(specs: Sequence[str]) -> list[str]:
    wanted = list(dict.fromkeys(specs))
    for spec in wanted:
        if spec not in LAUNDERINGS:
            raise Problem("InvalidRequest", f"unknown perturbation {spec[:60]!r}", hint=f"GET {PREFIX}/detectors")
    if len(wanted) > MAX_LAUNDERINGS:
        raise Problem("InvalidRequest", f"{len(wanted)} perturbations; at most {MAX_LAUNDERINGS} a request")
    return wanted


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _answer(content: dict[str, Any]) -> JSONResponse:
    return JSONResponse(content, headers={"cache-control": "no-store"})


def _problem(problem: Problem) -> JSONResponse:
    headers = {"cache-control": "no-store", **problem.headers}
    return JSONResponse(problem.to_dict(), status_code=problem.status, headers=headers)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 (as registered)
    return _problem(error)


async def _on_zoo_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ZooError)  # noqa: S101 (as registered)
    return _problem(problem_of(error))


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 (as registered)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return _problem(Problem("InvalidRequest", f"{where}: {first['msg']}", hint=f"GET {PREFIX}/openapi.json"))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 (as registered)
    kind = {404: "NotFound", 405: "MethodNotAllowed"}.get(error.status_code, "InvalidRequest")
    return _problem(Problem(kind, f"{request.method} {request.url.path}: {error.detail}", headers=error.headers))


async def _on_bug(request: Request, error: Exception) -> Response:
    # The traceback is on the server's standard error; a client learns no more than that there is one.
    return _problem(Problem("InternalError", f"unexpected {type(error).__name__}", hint="please report it"))


_HANDLERS: dict[type[Exception], Any] = {
    Problem: _on_problem,
    ZooError: _on_zoo_error,
    RequestValidationError: _on_invalid,
    HTTPException: _on_http,
    Exception: _on_bug,
}

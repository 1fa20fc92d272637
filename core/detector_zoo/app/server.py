"""Page, API and limits in one server: `build` makes the application, `serve` runs it."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector_zoo.app.options import Options
from detector_zoo.errors import ZooError

if TYPE_CHECKING:
    from detector_zoo.app.analysis import Analyst
    from detector_zoo.app.limits import App
    from detector_zoo.app.problems import Scope
    from detector_zoo.app.uploads import Uploads

__all__ = ["build", "serve"]

_NEEDED = ("anyio", "c2pa", "fastapi", "multipart", "python_multipart", "uvicorn")
_QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def build(options: Options, analyst: Analyst | None = None) -> App:
    """The ASGI application.

    Args:
        options: How to serve.
        analyst: The detectors; loaded as the options say where there is none.

    Raises:
        ZooError: The extra ``[app]`` is not installed, or a detector cannot be loaded.
    """
    _prepare(options)
    from fastapi import FastAPI

    from detector_zoo import __version__
    from detector_zoo.app import api
    from detector_zoo.app.guard import Guard
    from detector_zoo.app.limits import Admission, BodyLimit

    analyst = analyst or _load(options)
    uploads = _uploads(options) if options.page else None
    # Without FastAPI's pages of documentation: they load scripts from other machines.
    app = FastAPI(
        title="detector-zoo",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{api.PREFIX}/openapi.json",
        lifespan=uploads.cleaning if uploads else None,
    )
    api.install(app, analyst, options)
    if uploads:
        _add_page(app, analyst, options, uploads)

    def needs_a_place(scope: Scope) -> bool:
        return str(scope["method"]) == "POST" and str(scope["path"]).startswith(f"{api.PREFIX}/")

    places = options.concurrency + options.queue
    admitted = Admission(app, places=places, at_a_time=options.concurrency, applies=needs_a_place)
    bounded = uploads.before(admitted) if uploads else admitted
    return Guard(BodyLimit(bounded, options.max_upload), options)


def serve(options: Options, ready: Callable[[str, Analyst], None] = lambda url, analyst: None) -> None:
    """Listen until interrupted or terminated; for the main thread of a process of its own.

    Args:
        options: How to serve; with port 0 the system chooses one.
        ready: Called when the server answers, with its address and the detectors.

    Raises:
        ZooError: The extra ``[app]`` is not installed, the address cannot be listened on, or a detector cannot be
            loaded.
    """
    _prepare(options)
    # Ended by a service manager the folder of uploads is to go too; by default the signal ends Python on the spot.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with _listen(options.host, options.port) as listener:  # before the detectors are loaded, which takes seconds
        import uvicorn

        analyst = _load(options)
        app = build(options, analyst)
        host = f"[{options.host}]" if ":" in options.host else options.host
        url = f"http://{host}:{listener.getsockname()[1]}"

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                ready(url, analyst)

        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=options.embed,
            timeout_graceful_shutdown=3,
        )
        try:
            Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn has ended what was running, and hands the interrupt on
            return


def _load(options: Options) -> Analyst:
    from detector_zoo.app.analysis import Analyst

    return Analyst(
        options.detectors, device=options.device, max_pixels=options.max_pixels, concurrency=options.concurrency
    )


def _prepare(options: Options) -> None:
    """Check that what is needed is installed, before it is imported, and keep it quiet."""
    from importlib.util import find_spec

    os.environ.update(_QUIET)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of malformed bodies, which are answered
    needed = (*_NEEDED, "gradio") if options.page else _NEEDED
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ZooError(f"zoo app needs {', '.join(missing)}", hint="pip install 'detector-zoo[app]'")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ZooError(f"{host}: not an address to listen on ({error.strerror or error})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ZooError(
            f"cannot listen on {host}:{port} ({error.strerror or error})", hint="another --port, or 0 for any"
        ) from error
    return listener


def _uploads(options: Options) -> Uploads:
    from detector_zoo.app.uploads import Uploads

    # A folder of our own, removed when the process ends.
    folder = tempfile.mkdtemp(prefix="zoo-app-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Uploads(Path(folder), options.max_upload)


def _add_page(app: Any, analyst: Analyst, options: Options, uploads: Uploads) -> None:
    # Gradio reads the variables when it is imported.
    os.environ["GRADIO_TEMP_DIR"] = os.environ["GRADIO_EXAMPLES_CACHE"] = str(uploads.folder)
    import gradio

    from detector_zoo.app import page

    blocks = page.build(analyst, options)
    uploads.listed = blocks.upload_file_set
    gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=options.host,
        server_port=options.port,
        **page.mounting(options),
    )

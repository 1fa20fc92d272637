"""The page of `zoo app`, on gradio: `build` lays it out, `mounting` says how it is to be served.

Gradio brings the queue, the uploads and the layout; what is shown is HTML of our own (`detector_zoo.app.render`),
because a verdict on an axis is none of gradio's components.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from detector_zoo.app import pictures, render
from detector_zoo.app.options import Options
from detector_zoo.app.uploads import CLEAN_AFTER
from detector_zoo.app.zones import block, drop_zone, example_buttons, exchange_button
from detector_zoo.errors import ImageError, ZooError

if TYPE_CHECKING:
    from detector_zoo.app.analysis import Analyst
    from detector_zoo.app.answers import Analysis, Launderings

__all__ = ["build", "mounting"]

INTRODUCTION = """# Detector zoo
Several detectors of AI-generated images look at one picture. All of them can be wrong, and none can prove where a
picture comes from: read *what not to conclude* with every answer. Pictures stay on the machine that runs this page,
which deletes them after an hour at the latest.
"""
EMPTY = """<div class="zoo-empty"><p>Choose a picture, or one of the examples.</p><p>Take the file as you got it: a
screenshot or a copy that a messenger sent has other pixels than the original, and gets other verdicts.</p></div>"""
SLIDER = """<div class="zoo-slider"><label for="zoo-opacity">Opacity</label><input type="range" id="zoo-opacity"
min="0" max="100" value="60"><output for="zoo-opacity">60 %</output></div><p class="zoo-about">Red is where the
detector finds most evidence of generation within this picture. Every map has a reddest place, a photograph's too: maps
cannot be compared between pictures or detectors.</p>"""
LAUNDERING = """<p>Would the verdict survive what happens to a picture on its way through the web? The picture is
saved again, resized or blurred, and scored again.</p>"""
EXCHANGE = """<p>An edit by a generator changes all pixels a little, not only those of the edit. Here the original's
pixels are put back outside the mask (white marks the edit), and all three pictures are scored: a verdict that
vanishes had been about the untouched part. The three files have to be of one size.</p>"""

TO_RESULTS = """() => {
  if (innerWidth < 700) document.getElementById("zoo-verdicts").scrollIntoView({behavior: "smooth"});
}"""

log = logging.getLogger(__name__)

Updates = dict[Any, Any]
"""New values by component."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An upload.

    Attributes:
        path: The file.
        name: As its owner calls it.
        pasted: Whether it came out of the clipboard.
    """

    path: str
    name: str
    pasted: bool


@dataclass(slots=True)
class View:
    """One look at a picture; every new one is a `View` of its own, so that answers about two are never mixed.

    Attributes:
        picture: The picture.
        found: What the detectors said, once they have.
        laundered: What they said of it saved again.
    """

    picture: Picture
    found: Analysis | None = None
    laundered: Launderings | None = None


@dataclass(slots=True)
class Session:
    """What one visitor looks at: kept by the server, so that no request can point it at another file.

    Handlers of one session run at the same time: a picture may be given while another is looked at.

    Attributes:
        view: The last look, which counts.
        places: Uploaded files of the exchange, by drop zone.
    """

    view: View | None = None
    places: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def still(self, view: View) -> Iterator[None]:
        """Ends in `_Outdated`, whatever happens within, if the visitor looks at something else by then."""
        try:
            yield
        except Exception:
            if self.view is view:
                raise
            log.info("an outdated view failed", exc_info=True)
        if self.view is not view:
            raise _Outdated


class _Outdated(Exception):  # noqa: N818  never leaves the module
    """Nobody waits for the answer any more."""


def mounting(options: Options) -> dict[str, Any]:
    """Keyword arguments of `gradio.mount_gradio_app` for a page that asks nothing of any other machine."""
    here = Path(__file__).parent
    system = [gr.themes.Font(name) for name in ("system-ui", "Segoe UI", "Roboto", "sans-serif")]
    fixed = [gr.themes.Font(name) for name in ("ui-monospace", "Menlo", "Consolas", "monospace")]
    return {
        "theme": gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=system, font_mono=fixed),
        "css": here.joinpath("page.css").read_text("utf-8"),
        "head": f"<script>{here.joinpath('page.js').read_text('utf-8')}</script>",
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "pwa": False,
        "ssr_mode": False,
        "show_error": False,
        "max_file_size": options.max_upload,
    }


def build(analyst: Analyst, options: Options) -> gr.Blocks:
    """Lay out the page.

    Args:
        analyst: The detectors.
        options: Limits; the rest is for whoever serves the page.

    Returns:
        Blocks with a queue, to be mounted with `mounting`.
    """
    blocks: gr.Blocks = Page(analyst, options).blocks
    return blocks


class Page:
    """The page's components, and what happens to them."""

    def __init__(self, analyst: Analyst, options: Options) -> None:
        self.analyst = analyst
        self.limit = options.max_upload
        self.work: dict[str, Any] = {
            "concurrency_limit": options.concurrency,
            "concurrency_id": "work",
            "api_visibility": "private",
        }
        with gr.Blocks(title="Detector zoo", analytics_enabled=False) as self.blocks:
            self.session = gr.State(Session(), time_to_live=CLEAN_AFTER)
            gr.Markdown(INTRODUCTION, elem_id="zoo-introduction")
            with gr.Tabs():
                with gr.Tab("One picture"), gr.Row():
                    with gr.Column(scale=2, min_width=280, elem_id="zoo-choice"):
                        self.lay_out_choice()
                    with gr.Column(scale=3, min_width=280):
                        self.lay_out_results()
                with gr.Tab("An edit and its original"):
                    self.lay_out_exchange()
            self.connect()
        self.blocks.queue(max_size=options.concurrency + options.queue, api_open=False)

    def lay_out_choice(self) -> None:
        self.picture = drop_zone(
            "zoo-picture", "Picture", "Drop a file here, click to choose one, or paste", self.limit, paste=True
        )
        example_buttons()
        names = [detector.name for detector in self.analyst.detectors]
        self.chosen = gr.CheckboxGroup(names, value=names, label="Detectors", elem_id="zoo-detectors")
        self.again = gr.Button("Ask again", elem_id="zoo-again")

    def lay_out_results(self) -> None:
        self.verdicts = block(EMPTY, elem_id="zoo-verdicts")
        with gr.Column(visible=False) as self.more:
            with gr.Accordion("Where: heatmaps", elem_id="zoo-heatmaps"):
                self.which = gr.Radio([], label="Detector", elem_id="zoo-which")
                self.heat = block(elem_id="zoo-heat", min_height=120)
                block(SLIDER)
            with gr.Accordion("The file", elem_id="zoo-facts"):
                self.facts = block()
            with gr.Accordion("Would the verdict survive?", elem_id="zoo-laundering"):
                block(LAUNDERING)
                self.launder = gr.Button("Save it again and ask", elem_id="zoo-launder")
                self.laundered = block()
            self.export = block()

    def lay_out_exchange(self) -> None:
        block(EXCHANGE)
        with gr.Row():
            self.zones = [
                drop_zone("zoo-original", "Original", "The picture before the edit", self.limit),
                drop_zone("zoo-edited", "Edit", "The same picture, edited", self.limit),
                drop_zone("zoo-mask", "Mask", "White where the edit is", self.limit),
            ]
        exchange_button()
        self.exchange = gr.Button("Exchange, and ask", variant="primary", interactive=False, elem_id="zoo-exchange")
        self.exchanged = block(elem_id="zoo-exchanged")

    def connect(self) -> None:
        """Say what happens when."""
        results = [self.session, self.verdicts, self.more, self.which, self.heat, self.facts, self.laundered]
        results.append(self.export)
        asked: dict[str, Any] = {
            "inputs": [self.session, self.chosen],
            "outputs": results,
            "show_progress_on": self.verdicts,
        }
        drawn: dict[str, Any] = {"inputs": [self.session, self.which], "outputs": self.heat, **self.work}
        draw = self.guarded(self.draw, self.heat)
        # "multiple": gradio would not send a file that comes while another is looked at, or ("always_last") send the
        # first one's event again. The session sees to it that the last one counts.
        for event, handler, mode in (
            (self.picture.upload, self.take, "multiple"),
            (self.again.click, self.ask, "once"),
        ):
            done = event(self.guarded(handler, self.verdicts), **asked, trigger_mode=mode, **self.work)
            done.then(None, js=TO_RESULTS)
            done.then(draw, **drawn)
        self.which.input(draw, **drawn, trigger_mode="always_last")
        self.launder.click(
            self.guarded(self.wash, self.laundered),
            self.session,
            [self.session, self.laundered, self.export],
            show_progress_on=self.laundered,
            **self.work,
        )
        for zone in self.zones:
            zone.upload(
                self.placing(str(zone.elem_id)),
                self.session,
                [self.session, self.exchange],
                trigger_mode="multiple",
                api_visibility="private",
            )
        self.exchange.click(
            self.guarded(self.swap, self.exchanged), [self.session, self.chosen], self.exchanged, **self.work
        )

    def guarded(self, handler: Callable[..., Updates], place: gr.HTML) -> Callable[..., Updates]:
        """A handler that shows what went wrong in ``place``, and hides results that are not of the new picture.

        What is outdated when it is there changes nothing.
        """

        @wraps(handler)
        def run(*values: Any) -> Updates:
            try:
                return handler(*values)
            except _Outdated:
                return {place: gr.skip()}
            except ZooError as error:
                shown = render.problem(str(error), error.hint)
            except Exception:
                log.exception("the page failed")
                shown = render.problem("Something went wrong here.", "Whoever runs this page finds it in the log.")
            hidden = {self.more: gr.Column(visible=False)} if place is self.verdicts else {}
            return {place: shown, **hidden}

        return run

    def stored(self, path: str) -> bytes:
        """An uploaded file's bytes; no other file's.

        Raises:
            ImageError: It is no upload, or has been cleaned away.
        """
        if path in self.blocks.upload_file_set:
            try:
                return Path(path).read_bytes()
            except FileNotFoundError:
                log.info("%s has been cleaned away", path)
        raise ImageError("the picture is no longer here", hint="choose it again")

    def take(self, session: Session, chosen: list[str], event: gr.EventData) -> Updates:
        """A new picture."""
        return self.look(session, Picture(str(event.path), str(event.name), bool(event.pasted)), chosen)

    def ask(self, session: Session, chosen: list[str]) -> Updates:
        """Score the picture anew."""
        if session.view is None:
            raise ImageError("there is no picture yet", hint="drop one, or take an example")
        return self.look(session, session.view.picture, chosen)

    def look(self, session: Session, picture: Picture, chosen: list[str]) -> Updates:
        """Score a picture."""
        view = session.view = View(picture)
        _check(chosen)
        with session.still(view):
            found = view.found = self.analyst.analyse(self.stored(picture.path), picture.name, chosen)
        maps = [verdict.name for verdict in found.verdicts if verdict.localizes and not verdict.error]
        return {
            self.session: session,
            self.verdicts: render.analysis(found, self.analyst.detectors, pasted=picture.pasted),
            self.more: gr.Column(visible=True),
            self.which: gr.Radio(maps, value=maps[0] if maps else None, visible=bool(maps)),
            self.heat: "" if maps else "<p>None of these detectors says where.</p>",
            self.facts: render.facts(found.facts),
            self.laundered: "",
            self.export: self.saved(found, view),
        }

    def draw(self, session: Session, which: str | None) -> Updates:
        """The heatmap of one detector."""
        view = session.view
        if view is None or view.found is None or not which:
            return {self.heat: gr.skip()}
        with session.still(view):
            heat = self.analyst.heatmap(self.stored(view.picture.path), which, view.picture.name)
            base, top = pictures.layers(heat)
        return {self.heat: render.heat(base, top, which)}

    def wash(self, session: Session) -> Updates:
        """Score the picture after it was saved again, by the detectors whose verdicts are shown."""
        view = session.view
        if view is None or view.found is None:
            raise ImageError("there is no picture yet")
        names = [verdict.name for verdict in view.found.verdicts]
        with session.still(view):
            picture = view.picture
            washed = view.laundered = self.analyst.launder(self.stored(picture.path), names, name=picture.name)
        return {
            self.session: session,
            self.laundered: render.laundering(washed),
            self.export: self.saved(view.found, view),
        }

    def saved(self, found: Analysis, view: View) -> str:
        rows = view.laundered.to_dict()["rows"] if view.laundered else None
        return render.export(found, {"pasted": view.picture.pasted, "laundering": rows})

    def placing(self, zone: str) -> Callable[[Session, gr.EventData], Updates]:
        """The handler that takes a file of the exchange, which needs all three."""

        def place(session: Session, event: gr.EventData) -> Updates:
            session.places[zone] = str(event.path)
            complete = len(session.places) == len(self.zones)
            # Never back to False: answers to files that come together may arrive out of order.
            return {self.session: session, self.exchange: gr.Button(interactive=True) if complete else gr.skip()}

        return place

    def swap(self, session: Session, chosen: list[str]) -> Updates:
        """Exchange, and score."""
        missing = [zone for zone in self.zones if str(zone.elem_id) not in session.places]
        if missing:
            raise ImageError("original, edit and mask are needed", hint="choose all three, or take the example")
        _check(chosen)
        original, edited, mask = (self.stored(session.places[str(zone.elem_id)]) for zone in self.zones)
        return {self.exchanged: render.exchanged(self.analyst.exchange(original, edited, mask, chosen))}


def _check(chosen: list[str]) -> None:
    if not chosen:
        raise ZooError("no detector is chosen", hint="tick at least one")

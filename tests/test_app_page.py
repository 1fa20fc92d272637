"""The page of `zoo app` without a browser: what is laid out, what the handlers do, and what is escaped.

``make browser`` looks at it with one (check_app_in_browser.py).
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from detector_zoo.app import page, pictures, render, zones
from detector_zoo.app.analysis import Analyst
from detector_zoo.app.answers import Agreement, Heat, Launderings, Survival, Verdict
from detector_zoo.app.options import Options
from detector_zoo.errors import ImageError, ZooError
from detector_zoo.heatmaps import overlay

from conftest import encoded, photo

ROOT = Path(__file__).resolve().parents[1]
SPELL = "<script>alert('1')</script>\"&${1}{{2}}"


@pytest.fixture(scope="module")
def analyst() -> Analyst:
    return Analyst(("dummy",), device="cpu", max_pixels=1_000_000)


@pytest.fixture(scope="module")
def laid_out(analyst: Analyst) -> page.Page:
    return inside_a_loop(lambda: page.Page(analyst, Options(max_upload=1_000_000)))


def inside_a_loop(make: Callable[[], Any]) -> Any:
    """Outside of one gradio opens loops of its own, and leaves them open."""

    async def run() -> Any:
        return make()

    return asyncio.run(run())


def verdict(log_odds: float | None, label: str = "", **changes: Any) -> Verdict:
    scored = {} if log_odds is None else {"log_odds": log_odds, "probability": 0.5, "raw": 0.0, "threshold": 0.0}
    fixed = {"detector": "toy", "weights": "lite", "weights_sha256": "", "calibrated": True, "localizes": True}
    return Verdict(**{**fixed, "licence": "", "label": label, **scored, **changes})


class Strict(HTMLParser):
    """Elements and text; an element that is closed out of turn fails."""

    VOID = ("br", "img", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def found(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def upload(laid_out: page.Page, tmp_path: Path, data: bytes, name: str = "picture.png") -> SimpleNamespace:
    """What gradio tells of a file that it has stored."""
    file = tmp_path / name
    file.write_bytes(data)
    laid_out.blocks.upload_file_set.add(str(file))
    return SimpleNamespace(path=str(file), name=name, pasted=False)


def test_nothing_calls_out() -> None:
    kept = page.mounting(Options())
    written = json.dumps({name: value for name, value in kept.items() if isinstance(value, str)})
    assert "://" not in written
    assert kept["footer_links"] == []
    assert not any(kept[name] for name in ("run_history", "enable_monitoring", "mcp_server", "pwa", "ssr_mode"))
    theme = kept["theme"]
    assert theme._font_css == []
    assert theme._stylesheets == []
    assert kept["max_file_size"] == Options().max_upload


def test_what_is_laid_out(laid_out: page.Page) -> None:
    blocks = laid_out.blocks
    assert not blocks.analytics_enabled
    assert blocks.delete_cache is None  # `detector_zoo.app.uploads` cleans
    handlers = [fn for fn in blocks.fns.values() if fn.fn is not None]
    assert {fn.api_visibility for fn in handlers} == {"private"}
    work = [fn for fn in handlers if fn.concurrency_id == "work"]
    assert len(work) >= 6
    assert {fn.concurrency_limit for fn in work} == {Options().concurrency}
    assert laid_out.chosen.value == ["dummy"]
    # Of a file that comes while another is looked at, "once" would send nothing, "always_last" the other's path again.
    uploads = [fn for fn in handlers if any(event == "upload" for _, event in fn.targets)]
    assert [fn.trigger_mode for fn in uploads] == ["multiple"] * 4
    chosen = [fn for fn in handlers if any(event == "input" for _, event in fn.targets)]
    assert [fn.trigger_mode for fn in chosen] == ["always_last"]


def test_a_picture_from_upload_to_export(laid_out: page.Page, analyst: Analyst, tmp_path: Path) -> None:
    data = encoded(photo(200, 160), "PNG")
    session = page.Session()
    shown = laid_out.take(session, ["dummy"], upload(laid_out, tmp_path, data))
    expected = analyst.analyse(data, "picture.png")
    (row,) = Strict(shown[laid_out.verdicts]).found("li")[:1]
    assert row["data-detector"] == "dummy"
    values = [attributes["value"] for attributes in Strict(shown[laid_out.verdicts]).found("data")]
    assert [float(value or "nan") for value in values] == [
        expected.verdicts[0].log_odds,
        expected.verdicts[0].probability,
    ]
    assert "200 x 160 pixels" in shown[laid_out.facts]
    heat = laid_out.draw(session, "dummy")[laid_out.heat]
    assert len(Strict(heat).found("img")) == 2
    assert all(image["alt"] for image in Strict(heat).found("img"))
    washed = laid_out.wash(session)
    assert "JPEG, quality 75" in washed[laid_out.laundered]
    for html, laundering in ((shown[laid_out.export], None), (washed[laid_out.export], 4)):
        assert Strict(html).found("a")[0]["download"] == "picture.zoo.json"
        saved = exported(html)
        assert saved["verdicts"] == expected.to_dict()["verdicts"]
        assert saved["sha256"] == expected.sha256
        assert (saved["laundering"] and len(saved["laundering"])) == laundering


def exported(html: str) -> dict[str, Any]:
    """What a link to save the results holds."""
    (link,) = Strict(html).found("a")
    saved: dict[str, Any] = json.loads(base64.b64decode((link["href"] or "").partition(",")[2]))
    return saved


@pytest.mark.parametrize("fails", [False, True], ids=["answered", "failed"])
@pytest.mark.parametrize("work", ["analyse", "launder", "heatmap"])
def test_two_pictures_of_one_session_are_not_mixed_up(
    laid_out: page.Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str, fails: bool
) -> None:
    """The second is given while something is computed for the first."""
    session, after = page.Session(), {}
    first = upload(laid_out, tmp_path, encoded(photo(90, 80, 1), "PNG"), "first.png")
    second = upload(laid_out, tmp_path, encoded(photo(90, 80, 2), "PNG"), "second.png")
    if work != "analyse":
        laid_out.take(session, ["dummy"], first)
    real = getattr(laid_out.analyst, work)

    def meanwhile(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(laid_out.analyst, work, real)
        found = real(*given, **named)
        after.update(laid_out.take(session, ["dummy"], second))
        if fails:
            raise ImageError("first.png is damaged")
        return found

    monkeypatch.setattr(laid_out.analyst, work, meanwhile)
    asks = {
        "analyse": (laid_out.guarded(laid_out.take, laid_out.verdicts), ["dummy"], first),
        "launder": (laid_out.guarded(laid_out.wash, laid_out.laundered),),
        "heatmap": (laid_out.guarded(laid_out.draw, laid_out.heat), "dummy"),
    }
    handler, *values = asks[work]
    shown = handler(session, *values)
    assert list(shown.values()) == [gradio.skip()]
    assert "second.png" in after[laid_out.verdicts]
    assert session.view is not None
    assert session.view.picture.name == "second.png"
    washed = exported(laid_out.wash(session)[laid_out.export])
    assert washed["name"] == "second.png"
    assert washed["laundering"] == laid_out.analyst.launder(Path(second.path).read_bytes()).to_dict()["rows"]


def test_the_detectors_of_what_is_shown_are_asked_again(
    laid_out: page.Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = page.Session()
    laid_out.take(session, ["dummy"], upload(laid_out, tmp_path, encoded(photo(90, 80), "PNG")))
    asked: list[Any] = []
    launder = laid_out.analyst.launder

    def noted(data: bytes, detectors: Any = None, **named: Any) -> Launderings:
        asked.append(detectors)
        return launder(data, detectors, **named)

    monkeypatch.setattr(laid_out.analyst, "launder", noted)
    laid_out.wash(session)
    assert asked == [["dummy"]]
    (fn,) = [fn for fn in laid_out.blocks.fns.values() if getattr(fn.fn, "__name__", "") == "wash"]
    assert fn.inputs == [laid_out.session]


def test_the_exchange(laid_out: page.Page, analyst: Analyst, tmp_path: Path) -> None:
    original, edited = photo(96, 80, 1), photo(96, 80, 2)
    mask = Image.new("L", (96, 80))
    mask.paste(255, (10, 10, 40, 40))
    session = page.Session()
    files = [encoded(image, "PNG") for image in (original, edited, mask)]
    for number, (zone, data) in enumerate(zip(laid_out.zones, files, strict=True)):
        with pytest.raises(ImageError, match="original, edit and mask are needed"):
            laid_out.swap(session, ["dummy"])
        event = upload(laid_out, tmp_path, data, f"{number}.png")
        button = laid_out.placing(str(zone.elem_id))(session, event)[laid_out.exchange]
        assert button.interactive if number == 2 else button == gradio.skip()
    with pytest.raises(ZooError, match="no detector is chosen"):
        laid_out.swap(session, [])
    found = Strict(laid_out.swap(session, ["dummy"])[laid_out.exchanged])
    expected = analyst.exchange(*files)
    for (verdict,) in (expected.original, expected.edited, expected.exchanged):
        assert f"{verdict.log_odds:+.2f}" in found.text
    (image,) = found.found("img")
    content = base64.b64decode((image["src"] or "").partition(",")[2])
    with Image.open(io.BytesIO(content)) as picture:
        difference = np.abs(np.asarray(picture, int) - np.asarray(expected.image, int))
    assert difference.mean() < 8  # as JPEG
    assert "The mask covers 11.7% of the picture" in found.text


def test_only_uploads_are_read(laid_out: page.Page, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(photo(), "PNG"))
    for path in (str(secret), "/etc/passwd", "../secret.png", ""):
        with pytest.raises(ImageError, match="no longer here"):
            laid_out.take(page.Session(), ["dummy"], SimpleNamespace(path=path or "none", name="a.png", pasted=False))
    event = upload(laid_out, tmp_path, b"", "gone.png")
    Path(event.path).unlink()
    with pytest.raises(ImageError, match="no longer here"):
        laid_out.take(page.Session(), ["dummy"], event)


def test_what_goes_wrong_is_shown(laid_out: page.Page, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    take = laid_out.guarded(laid_out.take, laid_out.verdicts)
    session = page.Session()
    bad = take(session, ["dummy"], upload(laid_out, tmp_path, b"<html></html>", "page.png"))
    shown = Strict(bad[laid_out.verdicts])
    assert shown.tags[0][1]["role"] == "alert"
    assert "page.png" in shown.text
    assert bad[laid_out.more].visible is False
    assert session.view is not None
    assert session.view.found is None
    with pytest.raises(ImageError, match="there is no picture yet"):
        laid_out.wash(session)
    assert laid_out.draw(session, "dummy")[laid_out.heat] == gradio.skip()
    assert "tick at least one" in take(session, [], upload(laid_out, tmp_path, b"", "x.png"))[laid_out.verdicts]
    unknown = take(session, ["no<b>"], upload(laid_out, tmp_path, encoded(photo(), "PNG")))[laid_out.verdicts]
    assert "no&lt;b&gt;" in unknown
    assert (
        "there is no picture yet"
        in laid_out.guarded(laid_out.ask, laid_out.verdicts)(page.Session(), ["dummy"])[laid_out.verdicts]
    )
    with caplog.at_level(logging.ERROR, logger="detector_zoo.app.page"):
        broken = take(session, ["dummy"], SimpleNamespace())
    assert "Something went wrong here" in broken[laid_out.verdicts]
    assert "AttributeError" in caplog.text


def test_text_of_a_file_is_text(laid_out: page.Page, tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", SPELL)
    buffer = io.BytesIO()
    photo(200, 160).save(buffer, "PNG", pnginfo=chunks)
    event = upload(laid_out, tmp_path, buffer.getvalue())
    event.name = f"{SPELL}.png"
    shown = laid_out.take(page.Session(), ["dummy"], event)
    for component in (laid_out.verdicts, laid_out.facts, laid_out.export):
        parsed = Strict(shown[component])
        assert not parsed.found("script")
        assert "<script" not in shown[component]
    assert "<script>alert(" in Strict(shown[laid_out.facts]).text
    assert "script>" in Strict(shown[laid_out.verdicts]).text


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60))
def test_no_text_opens_an_element(text: str) -> None:
    def pages(said: str) -> list[str]:
        survival = Survival.of(said, verdict(1.0, "generated"), verdict(None, error=said))
        return [
            render.problem(said, said),
            render.heat("data:,", "data:,", said),
            render.laundering(Launderings(said, "", (survival,))),
        ]

    harmless = "word" if text.strip() else text
    for html, plain in zip(pages(text), pages(harmless), strict=True):
        assert [tag for tag, _ in Strict(html).tags] == [tag for tag, _ in Strict(plain).tags]


@pytest.fixture
def served(analyst: Analyst) -> Any:
    return replace(analyst.detectors[0], name="toy.lite", inconclusive=0.5)


@settings(max_examples=40, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(-20, 20))
def test_the_axis_holds_every_score(log_odds: float, threshold: float) -> None:
    html = render._axis(verdict(log_odds, "real", threshold=threshold), 0.5)
    places = [float(number) for number in re.findall(r"(?:left|width):(-?[\d.]+)%", html)]
    assert len(places) == 6
    assert all(0 <= place <= 100 for place in places)
    assert ("zoo-beyond" in html) == (abs(log_odds) > render.SPAN)


def test_what_a_verdict_shows(served: Any) -> None:
    def row(one: Verdict) -> Strict:
        return Strict(render.verdicts([one], [served], {"toy.lite": ["toy.lite errs: often"]}))

    sure = row(verdict(2.345, "generated", probability=0.9125, threshold=0.25))
    assert "+2.35" in sure.text or "+2.34" in sure.text
    assert "0.912" in sure.text
    assert "threshold +0.25; calibrated" in sure.text
    assert "toy.lite errs: often" in sure.text
    assert served.summary in sure.text
    (axis,) = [attributes for _, attributes in sure.tags if attributes.get("role") == "img"]
    assert axis["aria-label"] == "log-odds +2.35, threshold +0.25: generated" or "+2.34" in (axis["aria-label"] or "")
    assert "uncalibrated" in row(verdict(0.1, "inconclusive", calibrated=False)).text
    failed = row(verdict(None, error="toy failed: <no>"))
    assert "no score" in failed.text
    assert "toy failed: <no>" in failed.text
    assert not failed.found("data")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["generated"], "The one detector agrees: 1 generated."),
        (["real", "real"], "All 2 detectors agree: 2 real."),
        (["real", "generated", ""], "3 detectors asked: 1 generated, 1 real, 1 without a score."),
        (["inconclusive"], "1 detector asked: 1 inconclusive."),
    ],
)
def test_agreement(labels: list[str], words: str) -> None:
    counts = Agreement.of([verdict(1.0 if label else None, label) for label in labels])
    parsed = Strict(render.agreement(counts))
    assert words in parsed.text
    grown = [re.search(r"\d+", attributes["style"] or "") for attributes in parsed.found("span")]
    assert sum(int(number[0]) for number in grown if number) == len(labels)


def test_laundering_says_what_became_of_each() -> None:
    before = verdict(1.0, "generated")
    rows = (
        Survival.of("jpeg:75", before, verdict(0.9, "generated")),
        Survival.of("resize_bicubic:0.5", before, verdict(-0.9, "real")),
        Survival.of("blur:1", before, verdict(None, error="no")),
    )
    text = Strict(render.laundering(Launderings("a.png", "", rows))).text
    assert "1 of 2 verdicts survive." in text
    for words in ("JPEG, quality 75", "resized to 50%", "becomes real", "no score", "blurred, sigma 1 px"):
        assert words in text
    undecided = verdict(0.1, "inconclusive")
    rows = (
        Survival.of("jpeg:75", undecided, verdict(0.2, "inconclusive")),
        Survival.of("strange", undecided, verdict(3.0, "generated")),
    )
    text = Strict(render.laundering(Launderings("a.png", "", rows))).text
    assert "no verdict to survive" in text
    assert "as before" in text
    assert "now generated" in text
    assert "strange" in text


def test_layers_are_the_picture_and_its_overlay() -> None:
    image = photo(1500, 900)
    heat = np.tile(np.linspace(-1, 1, 1500, dtype=np.float32), (900, 1))
    decoded = []
    for url in pictures.layers(Heat(heat, image)):
        assert url.startswith("data:image/jpeg;base64,")
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as layer:
            decoded.append(np.asarray(layer, int))
    assert decoded[0].shape == decoded[1].shape == (614, 1024, 3)
    small = image.resize((1024, 614), Image.Resampling.LANCZOS)
    assert np.abs(decoded[0] - np.asarray(small, int)).mean() < 6
    full = overlay(small, np.tile(np.linspace(-1, 1, 1024, dtype=np.float32), (614, 1)), opacity=1.0)
    assert np.abs(decoded[1] - np.asarray(full, int)).mean() < 6


def test_examples_are_found_and_nothing_beside_them() -> None:
    folder = pictures.examples()
    assert folder == ROOT / "examples"
    for name in [name for name, _ in zones.EXAMPLES] + [name for _, name in zones.EXCHANGE]:
        assert (folder / name).is_file()

    def lay_out() -> Any:
        with gradio.Blocks():
            return zones.example_buttons()

    buttons = inside_a_loop(lay_out)
    assert buttons is not None
    assert base64.b64decode(buttons.example_bytes("real_1.jpg")) == (folder / "real_1.jpg").read_bytes()
    for name in ("../pyproject.toml", "make_examples.py", "/etc/passwd", ""):
        assert buttons.example_bytes(name) == ""
    images = Strict(buttons.value).found("img")
    assert len(images) == len(zones.EXAMPLES)
    assert sum(len(image["src"] or "") for image in images) < 100_000


def test_without_examples_the_page_goes_without(analyst: Analyst, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "examples", lambda: None)
    config = json.dumps(inside_a_loop(lambda: page.build(analyst, Options()).get_config_file()), default=str)
    assert "data-examples" not in config
    assert "zoo-picture" in config


def test_a_missing_hint_is_no_element() -> None:
    assert not Strict(render.problem("no")).found("span")
    assert Strict(render.problem("no", "do")).text == "nodo"
    with pytest.raises(ZooError, match="login"):
        Options(auth="nobody")

"""The page of `zoo app` in a real browser: needs chromium, so it is run by name, ``make browser``.

``SCREENSHOTS=docs/images`` keeps the screenshots (``make screenshots``).
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image, PngImagePlugin
from playwright.sync_api import Browser, Page, Playwright, Route, expect, sync_playwright

from detector_zoo.app import server
from detector_zoo.app.analysis import Analyst
from detector_zoo.app.answers import Analysis
from detector_zoo.app.options import Options

from conftest import photo

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PICTURE = EXAMPLES / "generated_2_local_edit.jpg"
WAIT = 120_000
LIMIT = 2_000_000
expect.set_options(timeout=WAIT)


@pytest.fixture(scope="module")
def analyst() -> Analyst:
    return Analyst(("all",), device="cpu", max_pixels=4_000_000)


@pytest.fixture(scope="module")
def address(analyst: Analyst) -> Iterator[str]:
    options = Options(port=0, max_upload=LIMIT, max_pixels=4_000_000, device="cpu")
    config = uvicorn.Config(
        server.build(options, analyst), port=0, log_level="warning", access_log=False, timeout_graceful_shutdown=3
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve()), daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        thread.join(0.05)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "chromium is not installed (Debian: apt-get install chromium)"
    with playwright.chromium.launch(executable_path=found, args=["--no-sandbox"]) as launched:
        yield launched


class Visit:
    """One page, and what it asked for and complained of."""

    def __init__(self, browser: Browser, address: str, width: int = 1280, height: int = 900) -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(WAIT)
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("console", lambda line: self.said.append(line.text) if line.type in ("error", "warning") else None)
        self.page.goto(address)
        self.page.wait_for_selector("#zoo-picture .zoo-drop")
        self.address = address

    def give(self, file: Path | dict[str, object], place: str = "zoo-picture") -> None:
        self.page.set_input_files(f"#{place} input[type=file]", file)

    def analysed(self, name: str) -> None:
        expect(self.page.locator(".zoo-results h2")).to_have_text(name)

    def fits(self) -> bool:
        return self.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address)
    yield visit
    visit.page.close()
    abroad = [url for url in visit.asked if not url.startswith((address, "data:", f"blob:{address}"))]
    assert abroad == []
    assert visit.said == []


def pixels(picture: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB"), float)


def test_a_picture_and_everything_about_it(visit: Visit, analyst: Analyst, tmp_path: Path) -> None:
    page = visit.page
    visit.give(PICTURE)
    visit.analysed(PICTURE.name)
    expected = analyst.analyse(PICTURE.read_bytes(), PICTURE.name)
    assert len(expected.verdicts) >= 3
    for verdict in expected.verdicts:
        row = page.locator(f'.zoo-verdict[data-detector="{verdict.name}"]')
        expect(row).to_be_visible()
        assert verdict.log_odds is not None
        assert verdict.probability is not None
        assert float(row.locator(".zoo-log-odds").get_attribute("value") or "nan") == pytest.approx(
            verdict.log_odds, abs=1e-4
        )
        assert row.locator(".zoo-log-odds").inner_text() == f"{verdict.log_odds:+.2f}"
        assert row.locator(".zoo-probability").inner_text() == f"{verdict.probability:.3f}"
        assert row.locator(".zoo-label").inner_text() == verdict.label
    for line in ("JPEG, quality 92", "C2PA credentials"):
        expect(page.locator("#zoo-facts", has_text=line)).to_be_visible()
    expect(page.locator(".zoo-caution", has_text="not proof")).to_be_visible()

    # The heatmap is drawn without being asked for, and the slider draws it anew without asking anybody.
    heat = page.locator(".zoo-layers")
    heat.wait_for()
    heat.scroll_into_view_if_needed()
    asked = len(visit.asked)
    shots = {}
    for opacity in (0, 60, 100):
        page.fill("#zoo-opacity", str(opacity))
        assert page.locator("output[for=zoo-opacity]").inner_text() == f"{opacity} %"
        shots[opacity] = pixels(heat.screenshot())
    assert [url for url in visit.asked[asked:] if "heartbeat" not in url] == []
    assert abs(shots[60] - shots[0]).mean() > 3
    assert abs(shots[100] - shots[60]).mean() > 3
    # Without it the picture is as it was; with it the map's reddest place is red.
    middle = shots[0][:, shots[0].shape[1] // 2]
    assert middle.std() > 5
    assert (shots[100][..., 0] - shots[100][..., 1]).max() > 150
    second = expected.verdicts[1].name
    page.get_by_role("radio", name=second).click()
    expect(page.locator(".zoo-heat figcaption")).to_contain_text(second)

    page.click("#zoo-launder")
    page.wait_for_selector("section.zoo-laundering")
    laundered = analyst.launder(PICTURE.read_bytes())
    assert page.locator(".zoo-laundering tbody tr").count() == len(laundered.rows)
    first = page.locator(".zoo-laundering tbody tr").first
    after = laundered.rows[0].after
    assert after.log_odds is not None
    assert "JPEG, quality 75" in first.inner_text()
    assert f"{after.log_odds:+.2f}" in first.inner_text()

    with page.expect_download() as download:
        page.click("#zoo-export")
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    assert saved.suffix == ".json"
    found = json.loads(saved.read_text("utf-8"))
    assert found["sha256"] == expected.sha256
    assert [verdict["log_odds"] for verdict in found["verdicts"]] == pytest.approx(
        [verdict.log_odds for verdict in expected.verdicts], abs=1e-4
    )
    assert len(found["laundering"]) == len(laundered.rows)


def test_an_example_and_fewer_detectors(visit: Visit, analyst: Analyst) -> None:
    page = visit.page
    left_out = analyst.detectors[0].name
    page.get_by_role("checkbox", name=left_out).uncheck()
    page.click('.zoo-examples button[data-examples$="real_4.jpg"]')
    visit.analysed("real_4.jpg")
    assert page.locator(".zoo-verdict").count() == len(analyst.detectors) - 1
    assert page.locator(f'.zoo-verdict[data-detector="{left_out}"]').count() == 0
    page.get_by_role("checkbox", name=left_out).check()
    page.click("#zoo-again")
    page.wait_for_selector(f'.zoo-verdict[data-detector="{left_out}"]')


def test_the_last_picture_given_counts(
    visit: Visit, analyst: Analyst, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another one comes while the first is looked at, and again while the first is on its way to the server."""
    page, analyse = visit.page, analyst.analyse
    begun, last_is_shown, ended = threading.Event(), threading.Event(), threading.Event()

    def held_up(data: bytes, name: str, *rest: object) -> Analysis:
        if name != "real_1.jpg":
            return analyse(data, name, *rest)
        begun.set()
        assert last_is_shown.wait(120)
        try:
            return analyse(data, name, *rest)
        finally:
            ended.set()

    def is_shown(name: str) -> None:
        page.wait_for_timeout(1500)  # in which the other's answer would come
        expect(page.locator("#zoo-picture [role=status]")).to_contain_text(name)
        visit.analysed(name)
        with page.expect_download() as download:
            page.click("#zoo-export")
        download.value.save_as(tmp_path / "saved.json")
        assert json.loads(tmp_path.joinpath("saved.json").read_text("utf-8"))["name"] == name

    monkeypatch.setattr(analyst, "analyse", held_up)
    visit.give(EXAMPLES / "real_1.jpg")
    assert begun.wait(120)
    visit.give(EXAMPLES / "real_4.jpg")
    visit.analysed("real_4.jpg")
    last_is_shown.set()
    assert ended.wait(120)
    is_shown("real_4.jpg")
    page.wait_for_selector(".zoo-heat")

    held: list[Route] = []
    page.route("**/gradio_api/upload*", lambda route: route.continue_() if held else held.append(route))
    with page.expect_request("**/gradio_api/upload*"):
        visit.give(EXAMPLES / "real_3.jpg")
    visit.give(EXAMPLES / "real_2.jpg")
    visit.analysed("real_2.jpg")
    held[0].continue_()
    is_shown("real_2.jpg")


def test_the_exchange(visit: Visit, analyst: Analyst) -> None:
    page = visit.page
    page.get_by_role("tab", name="An edit and its original").click()
    assert page.locator("#zoo-exchange").is_disabled()
    page.get_by_role("button", name="Take the example").click()
    for place, name in (("original", "real_2.jpg"), ("edited", "generated_2_local_edit.jpg"), ("mask", "edit_mask")):
        expect(page.locator(f"#zoo-{place} [role=status]")).to_contain_text(name)
    page.click("#zoo-exchange")  # waits until it can be clicked
    picture = page.locator(".zoo-exchanged img")
    picture.wait_for()
    names = ("real_2.jpg", "generated_2_local_edit.jpg", "edit_mask.png")
    expected = analyst.exchange(*(EXAMPLES.joinpath(name).read_bytes() for name in names))
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == list(expected.image.size)
    rows = page.locator(".zoo-exchanged tbody tr")
    assert rows.count() == len(analyst.detectors)
    for number, verdicts in enumerate(zip(expected.original, expected.edited, expected.exchanged, strict=True)):
        for verdict in verdicts:
            assert f"{verdict.log_odds:+.2f}" in rows.nth(number).inner_text()


def test_a_bad_file_gives_a_message_and_the_next_is_scored(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    visit.give({"name": "page.png", "mimeType": "image/png", "buffer": b"<html><script>alert(1)</script></html>"})
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("page.png")
    assert len(alert.inner_text().splitlines()) <= 2
    assert page.locator(".zoo-verdict").count() == 0
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    visit.give(bomb)
    expect(alert).to_contain_text("bomb.png")
    visit.give({"name": "large.png", "mimeType": "image/png", "buffer": bytes(LIMIT + 1)})
    expect(page.locator("#zoo-picture [role=status]")).to_contain_text("larger than the limit of 2.0 MB")
    full = json.dumps({"error": {"type": "InsufficientStorage", "message": "no room", "hint": None}})
    page.route("**/gradio_api/upload*", lambda route: route.fulfill(status=507, body=full))
    visit.give(EXAMPLES / "real_4.jpg")
    status = page.locator("#zoo-picture [role=status]")
    expect(status).to_have_text("real_4.jpg could not be uploaded: no room")
    page.unroute("**/gradio_api/upload*")
    visit.said = [line for line in visit.said if "507" not in line]  # which the browser reports
    visit.give(EXAMPLES / "real_4.jpg")
    visit.analysed("real_4.jpg")


def test_text_of_a_file_is_text(visit: Visit, tmp_path: Path) -> None:
    spell = "<img src=x onerror=document.title='gone'>${1}{{2}}`"
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Comment", spell)
    file = tmp_path / "<script>document.title=1<script>.png"
    photo(200, 160).save(file, pnginfo=chunks)
    visit.give(file)
    visit.page.wait_for_selector(".zoo-results")
    expect(visit.page.locator("#zoo-facts")).to_contain_text("<img src=x onerror=")
    assert visit.page.title() == "Detector zoo"
    assert visit.page.locator('img[src="x"]').count() == 0


def test_a_pasted_picture_is_told_to_be_a_new_file(visit: Visit) -> None:
    page = visit.page
    buffer = io.BytesIO()
    photo(200, 160).save(buffer, "PNG")
    page.evaluate(
        """bytes => {
          const held = new DataTransfer();
          held.items.add(new File([new Uint8Array(bytes)], "image.png", {type: "image/png"}));
          document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: held, bubbles: true}));
        }""",
        list(buffer.getvalue()),
    )
    visit.analysed("pasted-image.png")
    expect(page.locator(".zoo-note", has_text="Pasted pictures are new files")).to_be_visible()


def test_by_keyboard_and_with_names(visit: Visit) -> None:
    page = visit.page
    page.locator("#zoo-picture input[type=file]").focus()
    assert page.evaluate("getComputedStyle(document.querySelector('.zoo-drop')).outlineStyle") == "solid"
    page.locator('.zoo-examples button[data-examples$="real_4.jpg"]').focus()
    page.keyboard.press("Enter")
    visit.analysed("real_4.jpg")
    page.wait_for_selector(".zoo-heat")
    page.locator("#zoo-opacity").focus()
    page.keyboard.press("Home")
    assert page.locator("output[for=zoo-opacity]").inner_text() == "0 %"
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input:not([type=file]), img, [role=img]")]
             .filter(one => one.checkVisibility())
             .filter(one => !(one.innerText || one.ariaLabel || one.alt || one.labels?.length || one.title
                              || (one.tagName === "IMG" && one.closest("button")?.innerText)))
             .map(one => one.outerHTML.slice(0, 120))"""
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_text(browser: Browser, address: str, scheme: str) -> None:
    visit = Visit(browser, f"{address}/?__theme={scheme}")
    visit.give(EXAMPLES / "real_4.jpg")
    visit.analysed("real_4.jpg")
    weak = visit.page.evaluate(
        """() => {
          const parts = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
          const light = (c) => c.slice(0, 3).map(v => v / 255)
            .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
          const behind = (e) => { for (; e; e = e.parentElement) {
            const c = parts(getComputedStyle(e).backgroundColor);
            if (c.length === 3 || c[3] > .9) return c; } return [255, 255, 255]; };
          return [...document.querySelectorAll(".zoo *, #zoo-introduction *")]
            .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.checkVisibility())
            .map(e => { const [a, b] = [light(parts(getComputedStyle(e).color)), light(behind(e))];
                        return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.className, e.innerText]; })
            .filter(([ratio]) => ratio < 4.5);
        }"""
    )
    visit.page.close()
    assert weak == []


@pytest.mark.parametrize(("name", "width", "height"), [("wide", 1280, 1640), ("phone", 390, 1100)])
def test_screenshots(browser: Browser, address: str, tmp_path: Path, name: str, width: int, height: int) -> None:
    visit = Visit(browser, address, width, height)
    page = visit.page
    assert visit.fits()
    page.click('.zoo-examples button[data-examples$="generated_1_reconstruction.jpg"]')
    visit.analysed("generated_1_reconstruction.jpg")
    page.wait_for_selector(".zoo-heat")
    page.locator("details > summary").first.click()
    assert visit.fits()
    page.locator("details > summary").first.click()
    page.click("#zoo-launder")
    page.wait_for_selector("section.zoo-laundering")
    assert visit.fits()
    top = "document.querySelector('#zoo-verdicts').getBoundingClientRect().top + scrollY - 12" if width < 700 else "0"
    page.evaluate(f"scrollTo({{top: {top}, behavior: 'instant'}})")
    page.wait_for_timeout(1000)  # gradio's own animations
    file = Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"app-{name}.png"
    shot = page.screenshot()
    with Image.open(io.BytesIO(shot)) as image:
        image.thumbnail((1024, 2000), Image.Resampling.LANCZOS)
        small = image.convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(file, optimize=True)
    page.get_by_role("tab", name="An edit and its original").click()
    page.get_by_role("button", name="Take the example").click()
    page.click("#zoo-exchange")
    page.wait_for_selector(".zoo-exchanged img")
    assert visit.fits()
    page.close()
    assert file.stat().st_size < 200_000
    ink = pixels(file.read_bytes()).mean(2) < 140
    assert 0.01 < ink.mean() < 0.5
    assert all(part.any() for part in np.array_split(ink, 6))

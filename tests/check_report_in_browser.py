"""The report in a real browser: needs chromium, so it is run by name, ``pytest tests/check_report_in_browser.py``."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from detector_zoo.cli import main

from conftest import photo

PROBE = """<!DOCTYPE html><html><body style="margin:0"><iframe style="border:0" width="{width}" height="2000"
srcdoc="{page}"></iframe><pre id="found"></pre><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const inside = frame.contentDocument, images = [...inside.images];
  document.getElementById("found").textContent = JSON.stringify({{
    images: images.length,
    broken: images.filter(i => !(i.complete && i.naturalWidth > 0 && i.clientWidth > 50)).map(i => i.alt),
    overflow: inside.documentElement.scrollWidth - frame.clientWidth,
    smallest: Math.min(...[...inside.querySelectorAll("p,td,th,figcaption,li,dd")].map(
      e => parseFloat(getComputedStyle(e).fontSize))),
  }});
}};
</script></body></html>"""


def chromium(tmp_path: Path, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "chromium is not installed (Debian: apt-get install chromium)"
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    for i in range(40):
        folder = (
            root / "set" / (f"fake/a generator with a rather long name, number {i % 8}" if i % 2 else "real/camera")
        )
        folder.mkdir(parents=True, exist_ok=True)
        photo(96, 64, i).save(folder / f"{i:02d}.png")
    words = ["eval", "-d", "dummy", "--data", root / "set", "--report", root / "out", "--resamples", 100]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return root / "out/index.html"


@pytest.mark.parametrize("width", [1280, 400])
def test_every_figure_is_shown_and_nothing_overflows(report, tmp_path, width):
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(width=width, page=html.escape(report.read_text())))
    done = chromium(tmp_path, probe, "--window-size=1400,2000", "--dump-dom")
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert "CONSOLE" not in done.stderr
    assert found["images"] > 5
    assert found["broken"] == []
    assert found["overflow"] <= 0
    assert found["smallest"] >= 12


def test_screenshot_is_a_page(report, tmp_path):
    shot = tmp_path / "shot.png"
    done = chromium(tmp_path, report, "--window-size=1280,2000", f"--screenshot={shot}")
    assert "CONSOLE" not in done.stderr
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"), float)
    assert pixels.shape[:2] == (2000, 1280)
    assert pixels[:, :, 0].mean() > 200  # light
    ink = pixels.mean(2) < 128
    assert 0.005 < ink.mean() < 0.2
    # Something on every screenful.
    assert all(part.any() for part in np.array_split(ink, 8))

"""The work behind page and API, without either."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import ExifTags, Image

from app_toys import jpeg, signed
from detector_zoo.app import cautions
from detector_zoo.app.analysis import PERTURBATIONS, Analyst
from detector_zoo.app.answers import Agreement, Survival, Verdict
from detector_zoo.cli import main
from detector_zoo.errors import DatasetError, ImageError, PluginError, UnknownDetectorError
from detector_zoo.loading import LoadedDetector

from conftest import encoded, photo

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("dummy", "patch_shuffle", "ufd_clip", "mdmf")


@pytest.fixture(scope="module")
def analyst() -> Analyst:
    return Analyst(NAMES, device="cpu", max_pixels=1_000_000)


def numbers(verdicts: Sequence[Verdict]) -> list[tuple[Any, ...]]:
    return [(v.detector, v.weights, v.log_odds, v.probability, v.raw, v.label) for v in verdicts]


def sideways() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return jpeg(3, 300, 200, exif=exif)


@pytest.mark.parametrize(
    "data",
    [
        ROOT.joinpath("examples/real_1.jpg").read_bytes(),
        sideways(),
        encoded(photo(40, 30, 5).convert("RGBA"), "PNG"),
    ],
    ids=["photograph", "sideways", "small with alpha"],
)
def test_scores_are_those_of_zoo_score(data: bytes, analyst: Analyst, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    typed = [part for name in NAMES for part in ("-d", name)]
    shown = CliRunner().invoke(main, ["score", *typed, "--device", "cpu", "--format", "json", str(path)])
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    found = analyst.analyse(data, "picture.jpg")
    assert len(rows) == len(found.verdicts) == len(NAMES)
    for row, verdict in zip(rows, found.verdicts, strict=True):
        assert row["error"] == verdict.error == ""
        for column in (
            *("detector", "weights", "weights_sha256", "log_odds", "probability", "raw"),
            *("label", "threshold", "calibrated", "note"),
        ):
            assert getattr(verdict, column) == row[column], column
        assert found.sha256 == row["sha256"]
        assert (found.facts.width, found.facts.height, found.facts.format) == (
            *(row["width"], row["height"]),
            row["format"],
        )


def test_an_answer_is_json(analyst: Analyst) -> None:
    found = analyst.analyse(signed(jpeg()), "../a.jpg")
    copy = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert copy["name"] == copy["file"]["name"] == "a.jpg"
    assert [row["log_odds"] for row in copy["verdicts"]] == [v.log_odds for v in found.verdicts]
    assert copy["agreement"]["scored"] == len(NAMES)
    assert copy["file"]["credentials"]["says_generated"]
    assert copy["versions"]["torch"]
    assert "platform" not in copy["versions"]
    assert copy["verdicts"][1]["licence"] == "Apache-2.0"


def test_agreement_counts_labels_and_failures() -> None:
    def verdict(label: str) -> Verdict:
        return Verdict(
            detector="a", weights="", weights_sha256="", label=label, calibrated=True, localizes=False, licence=""
        )

    found = Agreement.of([verdict(label) for label in ("real", "real", "generated", "inconclusive", "")])
    assert found == Agreement(generated=1, real=2, inconclusive=1, failed=1)
    assert found.scored == 4


@pytest.mark.parametrize(
    ("before", "after", "survives"),
    [
        ("real", "real", True),
        ("real", "generated", False),
        ("generated", "inconclusive", False),
        ("inconclusive", "real", None),
        ("", "real", None),
        ("real", "", None),
    ],
)
def test_a_verdict_survives_if_there_was_one_and_it_is_the_same(before: str, after: str, survives: bool | None) -> None:
    made = [
        Verdict(detector="a", weights="", weights_sha256="", label=label, calibrated=True, localizes=False, licence="")
        for label in (before, after)
    ]
    assert Survival.of("blur:1", *made).survives is survives


def test_detectors_are_chosen_by_method_or_full_name(analyst: Analyst) -> None:
    data = jpeg()
    assert [v.name for v in analyst.analyse(data).verdicts] == [d.name for d in analyst.detectors]
    chosen = analyst.analyse(data, "", ["mdmf.lite", "dummy", "mdmf"])
    assert [v.name for v in chosen.verdicts] == ["mdmf.lite", "dummy"]
    with pytest.raises(UnknownDetectorError, match="no detector 'mdfm' is loaded here") as caught:
        analyst.analyse(data, "", ["mdfm"])
    assert "mdmf" in (caught.value.hint or "")
    with pytest.raises(UnknownDetectorError) as caught:
        analyst.check(["x\x1b[31m" + "y" * 5000])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_what_is_no_picture_is_refused_in_one_line(analyst: Analyst) -> None:
    with pytest.raises(ImageError, match=r"^photo.png: not an image .*HTML"):
        analyst.analyse(b"<html>hello</html>", "../photo.png")
    with pytest.raises(ImageError, match="the limit is 1,000,000"):
        analyst.analyse(encoded(Image.new("RGB", (1001, 1000)), "PNG"))


def test_a_detector_that_fails_takes_no_other_with_it(analyst: Analyst, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LoadedDetector.forward

    def broken(self: LoadedDetector, prepared: Sequence[Any]) -> Any:
        if self.info.name == "mdmf":
            raise PluginError("mdmf.lite failed: RuntimeError: out of luck")
        return forward(self, prepared)

    monkeypatch.setattr(LoadedDetector, "forward", broken)
    found = analyst.analyse(jpeg())
    by_name = {v.detector: v for v in found.verdicts}
    assert by_name["mdmf"].error == "mdmf.lite failed: RuntimeError: out of luck"
    assert (by_name["mdmf"].log_odds, by_name["mdmf"].label) == (None, "")
    assert found.agreement.failed == 1
    assert found.agreement.scored == 3
    assert not any(line.startswith("mdmf") for line in found.do_not_conclude)


def test_many_threads_get_the_scores_of_their_own_pictures(analyst: Analyst) -> None:
    files, chosen = [jpeg(seed) for seed in range(12)], ["dummy", "patch_shuffle", "mdmf"]
    alone = [numbers(analyst.analyse(data, "", chosen).verdicts) for data in files]
    assert len({str(row) for row in alone}) == 12
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda data: numbers(analyst.analyse(data, "", chosen).verdicts), files))
    assert together == alone


def test_no_more_analyses_run_than_there_are_places(monkeypatch: pytest.MonkeyPatch) -> None:
    analyst = Analyst(["dummy"], concurrency=2)
    running = most = 0
    lock, both = threading.Lock(), threading.Barrier(2)
    verdict = analyst._verdict

    def watched(*args: Any) -> Verdict:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(60)  # six calls are three pairs
        with lock:
            running -= 1
        return verdict(*args)

    monkeypatch.setattr(analyst, "_verdict", watched)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda seed: analyst.analyse(jpeg(seed)), range(6)))
    assert most == 2


def test_heatmap_lies_on_the_picture_as_the_detector_sees_it(analyst: Analyst) -> None:
    data = sideways()
    for name in ("dummy", "patch_shuffle"):
        loaded = analyst._find(name)
        heat, image = analyst.heatmap(data, name)
        assert heat.dtype == np.float32
        assert heat.shape == (image.height, image.width)
        assert (image.size == (200, 300)) == (loaded.orientation_policy == "apply")
        assert np.array_equal(heat, loaded.heatmap(data))


def test_a_detector_without_heatmaps_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scores:
        def score(self, images: Sequence[Image.Image]) -> np.ndarray[Any, Any]:
            return np.zeros(len(images), np.float32)

    analyst = Analyst(["dummy"])
    monkeypatch.setitem(analyst._loaded, "dummy", dataclasses.replace(analyst._loaded["dummy"], detector=Scores()))
    assert [served.localizes for served in analyst.detectors] == [False]
    assert [verdict.localizes for verdict in analyst.analyse(jpeg()).verdicts] == [False]
    with pytest.raises(PluginError, match="dummy has no heatmap"):
        analyst.heatmap(jpeg(), "dummy")


def test_laundering(analyst: Analyst) -> None:
    data = ROOT.joinpath("examples/generated_4_upscaling.jpg").read_bytes()
    plain = {v.name: v for v in analyst.analyse(data).verdicts}
    found = analyst.launder(data, ["patch_shuffle", "dummy"], ["none", "blur:2"], "a.jpg")
    assert [(row.before.name, row.perturbation) for row in found.rows] == [
        *(("patch_shuffle.lite", "none"), ("patch_shuffle.lite", "blur:2")),
        *(("dummy", "none"), ("dummy", "blur:2")),
    ]
    for row in found.rows:
        assert row.before.log_odds == plain[row.before.name].log_odds
        assert (row.after.log_odds == row.before.log_odds) == (row.perturbation == "none")
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["survives"] is found.rows[0].survives
    with pytest.raises(ValueError, match="unknown perturbation"):
        analyst.launder(data, None, ["fog"])
    assert [row.perturbation for row in analyst.launder(data, ["dummy"]).rows] == list(PERTURBATIONS)


def test_exchange(analyst: Analyst) -> None:
    first, second = np.asarray(photo(64, 48, 1)), np.asarray(photo(64, 48, 2))
    mask = np.zeros((48, 64), np.uint8)
    mask[10:20, 30:50] = 255
    files = [encoded(Image.fromarray(pixels), "PNG") for pixels in (first, second, mask)]
    found = analyst.exchange(*files)
    made = np.asarray(found.image)
    assert np.array_equal(made[mask == 0], first[mask == 0])
    assert np.array_equal(made[mask > 0], second[mask > 0])
    assert found.share == pytest.approx(200 / (48 * 64))
    assert found.outside > 0.9
    assert numbers(found.original) == numbers(analyst.analyse(files[0]).verdicts)
    assert numbers(found.edited) == numbers(analyst.analyse(files[1]).verdicts)
    again = encoded(found.image, "PNG")
    assert numbers(found.exchanged) == numbers(analyst.analyse(again).verdicts)
    unchanged = analyst.exchange(files[0], again, files[2], ["dummy"])
    assert unchanged.outside == 0
    assert "changes nothing" in unchanged.notes[0]


def test_exchange_refuses_what_does_not_fit(analyst: Analyst) -> None:
    picture, small = encoded(photo(64, 48)), encoded(photo(32, 48))
    black, white = (encoded(Image.new("L", (64, 48), value)) for value in (127, 128))
    with pytest.raises(DatasetError, match="the edit has 32 x 48 pixels"):
        analyst.exchange(picture, small, white)
    with pytest.raises(DatasetError, match="the mask has 32 x 48 pixels"):
        analyst.exchange(picture, picture, small)
    with pytest.raises(DatasetError, match="mask is empty"):
        analyst.exchange(picture, picture, black)
    with pytest.raises(ImageError, match=r"^mask: "):
        analyst.exchange(picture, picture, b"no picture")


def test_what_not_to_conclude(analyst: Analyst) -> None:
    small = analyst.analyse(signed(jpeg(0, 60, 50, quality=40)))
    lines = "\n".join(small.do_not_conclude)
    assert "not proof" in lines
    assert "dummy is not a detector" in lines
    assert "shorter side has 50 pixels" in lines
    assert "ufd_clip.lite (224 px)" in lines
    assert "JPEG quality is about 40" in lines
    assert "signer says that a machine made" in lines
    for served in analyst.detectors[1:]:
        main_figure = next(result for result in served.results if result["metric"] == "AUROC")
        (line,) = [line for line in small.do_not_conclude if line.startswith(served.name)]
        low, high = main_figure["interval"]
        assert f"AUROC {main_figure['value']:.2f} [{low:.2f}, {high:.2f}] ({main_figure['count']})" in line
        assert "after JPEG 75" in line
        assert "for local edits" in line
    plain = "\n".join(analyst.analyse(jpeg(0, 400, 300)).do_not_conclude)
    assert "strip both" in plain
    assert "shorter side" not in plain
    assert "JPEG quality" not in plain


def test_what_not_to_conclude_from_weights_without_figures_or_calibration(analyst: Analyst) -> None:
    loaded = analyst._find("mdmf")
    assert loaded.spec is not None
    bare = dataclasses.replace(loaded, spec=dataclasses.replace(loaded.spec, reproduced=(), calibration=None))
    found = analyst.analyse(jpeg(), "", ["mdmf"])
    verdict = dataclasses.replace(found.verdicts[0], calibrated=False)
    lines = "\n".join(cautions.write(found.facts, [(bare, verdict)]))
    assert "mdmf.lite is not calibrated" in lines
    assert "mdmf.lite has no figure that was measured here" in lines

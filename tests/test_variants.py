"""`method.tag@variant`: another preprocessing for the same file of weights; and what a forward pass may use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from detector_zoo import load, predictions, registry, scoring
from detector_zoo.cli import main
from detector_zoo.cli.sizes import size
from detector_zoo.detector import DEFAULT_MEMORY, SHARE, TorchDetector
from detector_zoo.errors import PluginError, UnknownDetectorError, WeightsError, ZooError

from conftest import encoded, photo

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copy(own_home: Path) -> str:
    """The name of weights with a variant: mdmf.lite's own file under another tag, in the user's own catalogue."""
    entry = yaml.safe_load((ROOT / "registry.yaml").read_text("utf-8"))["weights"]["mdmf.lite"]
    entry["variants"] = {"coarse": {"jpeg_quality": 30}}
    document = {"schema_version": 1, "weights": {"mdmf.copy": entry}}
    (own_home / "registry.yaml").write_text(yaml.safe_dump(document), "utf-8")
    registry.registry.cache_clear()
    return "mdmf.copy"


def test_a_variant_changes_its_constants_and_loses_the_calibration(copy: str) -> None:
    _, plain = registry.resolve(copy)
    _, variant = registry.resolve(f"{copy}@coarse")
    assert plain is not None
    assert variant is not None
    assert plain.calibration is not None
    assert variant == replace(
        plain,
        variant="coarse",
        preprocessing={**plain.preprocessing, "jpeg_quality": 30},
        calibration=None,
        threshold=0.0,
    )


def test_scores_of_a_variant_have_rows_of_their_own(copy: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(photo(200, 160)))
    detectors = [load(copy), load(f"{copy}@coarse")]
    assert [detector.name for detector in detectors] == ["mdmf.copy", "mdmf.copy@coarse"]
    assert detectors[0].weights_sha256 == detectors[1].weights_sha256
    output = tmp_path / "rows.jsonl"
    with predictions.Journal(output) as journal:
        (rows,) = scoring.run([str(tmp_path / "a.png")], detectors, scoring.Options(), journal)
        assert journal.finish() == 2
    assert [row.weights for row in rows] == ["copy", "copy@coarse"]
    assert rows[0].raw != rows[1].raw
    assert [row.calibrated for row in rows] == [True, False]
    # The same file again: each finds its own row and not the other's.
    with predictions.Journal(output) as journal:
        (again,) = scoring.run([str(tmp_path / "a.png")], detectors[::-1], scoring.Options(), journal)
    assert [row.raw for row in again] == [row.raw for row in rows[::-1]]


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("mdmf.copy@fine", "mdmf.copy has no variant 'fine'", "known: mdmf.copy@coarse"),
        ("mdmf.lite@fine", "mdmf.lite has no variant 'fine'", "known: none"),
        ("mdmf@", "mdmf.lite has no variant ''", "known: none"),
        ("dummy@fine", "dummy works without weights and has no variants", None),
    ],
)
def test_unknown_variants(copy: str, name: str, message: str, hint: str | None) -> None:
    with pytest.raises(UnknownDetectorError) as caught:
        load(name)
    assert str(caught.value) == message
    assert caught.value.hint == hint


def test_info_names_the_variants() -> None:
    shown = CliRunner().invoke(main, ["info", "cnnspot"]).output
    assert "cnnspot.blur_jpg_0_5@crop224" in shown


@pytest.mark.parametrize("variants", [["crop"], {"A": {}}, {"": {}}, {"a": 3}])
def test_a_catalogue_with_bad_variants_is_refused(tmp_path: Path, variants: object) -> None:
    path = tmp_path / "registry.yaml"
    entry = {"source": "file:", "why": "test", "variants": variants}
    path.write_text(yaml.safe_dump({"schema_version": 1, "weights": {"tiny.a": entry}}))
    with pytest.raises(WeightsError, match=r"tiny\.a: variants"):
        registry.load_file(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GB", 2e9), ("1.5 gb", 1.5e9), ("512MiB", 512 * 2**20), ("3000000", 3e6), ("4000kB", 4e6)],
)
def test_sizes(text: str, expected: int) -> None:
    assert size(None, None, text) == expected


@pytest.mark.parametrize("text", ["", "lots", "2 G", "-1GB", "1e9", "GB", "5kB"])
def test_sizes_that_are_none(text: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["score", "-d", "dummy", "--memory", text, str(tmp_path)])
    assert done.exit_code == 2
    assert "--memory" in done.output


def test_the_budget_is_a_share_of_what_was_allowed() -> None:
    for allowed in (None, 10**8):
        detector = load("mdmf", memory=allowed, device="cpu").detector
        assert isinstance(detector, TorchDetector)
        assert detector.budget() == int(SHARE * (allowed or DEFAULT_MEMORY))


def test_half_precision_moves_a_score_by_little_and_is_refused_where_it_cannot_work() -> None:
    picture = photo(200, 160)
    exact = load("mdmf", device="cpu")
    half = load("mdmf", device="cpu", precision="bf16")
    (before,), (after,) = exact.score([picture]), half.score([picture])
    assert before != after
    assert after == pytest.approx(before, abs=0.5)
    with pytest.raises(ZooError, match="precision fp16 needs CUDA"):
        load("mdmf", device="cpu", precision="fp16")


def test_evidence_is_refused_where_there_is_none() -> None:
    with pytest.raises(PluginError, match=r"mdmf\.lite does not explain its score"):
        load("mdmf").evidence(photo())


def test_precision_is_left_as_it_was_outside_a_forward_pass() -> None:
    load("mdmf", device="cpu", precision="bf16").score([photo()])
    assert not torch.is_autocast_enabled("cpu")

"""The copies of catalogues that make `zoo list` start faster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from detector_zoo import catalogue_files, strict_yaml
from detector_zoo.errors import WeightsError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    path = tmp_path / "registry.yaml"
    path.write_text("weights: {a.b: {bytes: 1}}\n")
    return path


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, whoever reads YAML fails."""

    def read(path: Path) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(strict_yaml, "read", read)


def copies(cache: Path) -> list[Path]:
    return sorted(cache.glob("*"))


def test_the_first_party_catalogue_is_kept_whole(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    document = catalogue_files.read(ROOT / "registry.yaml", tmp_path)
    assert document == strict_yaml.read(ROOT / "registry.yaml")
    request.getfixturevalue("never")
    assert catalogue_files.read(ROOT / "registry.yaml", tmp_path) == document


def test_a_changed_catalogue_is_read_again(catalogue: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    catalogue_files.read(catalogue, cache)
    catalogue.write_text("weights: {a.b: {bytes: 23}}\n")
    assert catalogue_files.read(catalogue, cache) == {"weights": {"a.b": {"bytes": 23}}}
    # Same size, another time: only the file's status can tell.
    catalogue.write_text("weights: {a.b: {bytes: 42}}\n")
    os.utime(catalogue, ns=(0, 1))
    assert catalogue_files.read(catalogue, cache) == {"weights": {"a.b": {"bytes": 42}}}
    assert len(copies(cache)) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"of": 1}', b"\xff\xfe"])
def test_a_damaged_copy_is_made_anew(catalogue: Path, tmp_path: Path, damage: bytes) -> None:
    cache = tmp_path / "cache"
    expected = catalogue_files.read(catalogue, cache)
    (copy,) = copies(cache)
    copy.write_bytes(damage)
    assert catalogue_files.read(catalogue, cache) == expected
    assert json.loads(copy.read_bytes())["document"] == expected


@pytest.mark.parametrize("document", ["when: 2026-11-22", "weights: {1: one}", "weights: !!set {a}"])
def test_what_json_would_change_is_not_kept(catalogue: Path, tmp_path: Path, document: str) -> None:
    catalogue.write_text(document)
    cache = tmp_path / "cache"
    assert catalogue_files.read(catalogue, cache) == strict_yaml.read(catalogue)
    assert copies(cache) == []


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(catalogue: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert catalogue_files.read(catalogue, tmp_path / "cache") == {"weights": {"a.b": {"bytes": 1}}}


def test_errors_are_not_hidden_by_a_copy(catalogue: Path, tmp_path: Path) -> None:
    catalogue_files.read(catalogue, tmp_path / "cache")
    catalogue.write_text("a: [")
    with pytest.raises(WeightsError, match=r"registry\.yaml"):
        catalogue_files.read(catalogue, tmp_path / "cache")
    catalogue.unlink()
    with pytest.raises(WeightsError, match="No such file"):
        catalogue_files.read(catalogue, tmp_path / "cache")


def test_the_second_list_imports_no_yaml() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from detector_zoo.cli import main\n"
        "assert CliRunner().invoke(main, ['list']).exit_code == 0\n"
        "print('yaml' in sys.modules)"
    )
    told = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert told == ["True", "False"]

"""`zoo lock`: what is locked is what is used, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from detector_zoo import convert, hub_refs, load, lockfile
from detector_zoo.errors import WeightsError, ZooError
from hub_toys import REPO, complaint, run_folder, zoo
from test_weights import go_offline

from conftest import photo
from hub_server import HubServer

NAME = f"hub:{REPO}"
LOCK = Path("zoo.lock")


@pytest.fixture
def commit(run: Path) -> str:
    photo().save("photo.png")
    return push(run)


def push(folder: Path) -> str:
    result = zoo("push", folder, "--repo", REPO)
    assert result.exit_code == 0, result.output
    hub_refs.forget()
    return result.stdout.strip().rpartition("@")[2]


def used(*words: object) -> str:
    """The commit that a row of `zoo score` names."""
    result = zoo("score", "-d", NAME, "photo.png", "--device", "cpu", "--format", "json", *words)
    assert result.exit_code == 0, result.output
    return str(json.loads(result.stdout)["weights"].rpartition("@")[2])


def change(commit: str | None = None, **files: Any) -> None:
    """Write another lock."""
    entry = lockfile.read(LOCK)[NAME]
    changed = {name: lockfile.File(sha256=value, bytes=entry.files[name].bytes) for name, value in files.items()}
    new = lockfile.Entry(commit=commit or entry.commit, locked=entry.locked, files={**entry.files, **changed})
    lockfile.write(LOCK, {NAME: new})


def test_what_is_written(hub: HubServer, commit: str, tmp_path: Path) -> None:
    result = zoo("lock", NAME)
    assert result.exit_code == 0, result.output
    assert f"{NAME}: {commit[:12]}" in result.stderr
    document = json.loads(LOCK.read_text())
    assert document["schema_version"] == 1
    entry = document["weights"][NAME]
    assert entry["commit"] == commit
    assert len(entry["locked"]) == 10
    weights = tmp_path / "run" / "weights.safetensors"
    files = hub.repos[REPO].commits[commit]
    assert entry["files"]["weights.safetensors"] == {
        "sha256": convert.sha256_of(weights), "bytes": weights.stat().st_size
    }  # fmt: skip
    assert entry["files"]["weights.yaml"]["bytes"] == len(files["weights.yaml"])
    assert set(entry["files"]) == {"weights.safetensors", "weights.yaml"}
    assert zoo("lock").stdout == f"{NAME} {commit} {entry['locked']}\n"
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


def test_a_locked_run_uses_the_locked_commit(hub: HubServer, commit: str, tmp_path: Path) -> None:
    zoo("lock", NAME)
    newer = push(run_folder(tmp_path / "new", seed=1))
    assert used() == commit
    Path("zoo.lock").rename("elsewhere.lock")
    assert used() == newer
    assert used("--lock", "elsewhere.lock") == commit
    assert used() == newer


def test_the_environment_names_it(hub: HubServer, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "locks" / "my.lock"
    elsewhere.parent.mkdir()
    monkeypatch.setenv("DETECTOR_ZOO_LOCK", str(elsewhere))
    assert zoo("lock", NAME).exit_code == 0
    assert elsewhere.is_file()
    assert not LOCK.exists()
    push(run_folder(tmp_path / "new", seed=1))
    assert used() == commit
    monkeypatch.setenv("DETECTOR_ZOO_LOCK", str(tmp_path / "gone.lock"))
    assert "gone.lock: No such file" in complaint(zoo("score", "-d", NAME, "photo.png"))


def test_update_moves_it(hub: HubServer, commit: str, tmp_path: Path) -> None:
    zoo("lock", NAME)
    before = LOCK.read_bytes()
    newer = push(run_folder(tmp_path / "new", seed=1))
    assert "0 changed" in zoo("lock", NAME).stderr
    assert LOCK.read_bytes() == before
    result = zoo("lock", "--update")
    assert f"{NAME}: {commit[:12]} -> {newer[:12]}" in result.stderr
    assert used() == newer
    after = LOCK.read_bytes()
    assert zoo("lock", "--update").exit_code == 0
    assert LOCK.read_bytes() == after


def test_what_is_not_in_it_is_refused(hub: HubServer, commit: str) -> None:
    zoo("lock", f"{NAME}@{commit}")
    said = complaint(zoo("score", "-d", NAME, "photo.png"))
    assert f"{NAME} is not in zoo.lock" in said
    assert f"zoo lock {NAME}" in said
    lockfile.write(LOCK, {})
    for command in (["info", NAME], ["weights", "pull", NAME], ["score", "-d", f"{NAME}@{commit}", "photo.png"]):
        assert "is not in zoo.lock" in complaint(zoo(*command))
    assert zoo("score", "-d", "dummy", "photo.png").exit_code == 0


def test_a_row_can_be_scored_again(hub: HubServer, commit: str, tmp_path: Path) -> None:
    zoo("lock", NAME)
    push(run_folder(tmp_path / "new", seed=1))
    again = load(f"toy.{NAME}@{commit}", device="cpu")
    assert again.name == f"toy.{NAME}@{commit}"


@pytest.mark.parametrize("name", ["weights.yaml", "weights.safetensors"])
def test_another_hash_is_refused(hub: HubServer, commit: str, name: str) -> None:
    zoo("lock", NAME)
    change(**{name: "0" * 64})
    said = complaint(zoo("score", "-d", NAME, "photo.png", "--device", "cpu"))
    assert name in said
    assert "0" * 64 in said or "the lock file has" in said
    assert "--update" in said


def test_a_repository_that_changed_under_its_commit(
    hub: HubServer, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo("lock", NAME)
    other = run_folder(tmp_path / "new", seed=1)
    files = hub.repos[REPO].commits[commit]
    hub.repos[REPO].commits[commit] = files | {
        name: (other / name).read_bytes() for name in ("weights.safetensors", "weights.yaml")
    }
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cold"))
    monkeypatch.setenv("DETECTOR_ZOO_HOME", str(tmp_path / "home"))
    assert "the lock file has" in complaint(zoo("score", "-d", NAME, "photo.png", "--device", "cpu"))
    hub.repos[REPO].commits[commit] = files | {"weights.safetensors": (other / "weights.safetensors").read_bytes()}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "colder"))
    assert "another file, or changed" in complaint(zoo("score", "-d", NAME, "photo.png", "--device", "cpu"))


def test_locked_and_offline(hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo("lock", NAME)
    go_offline(monkeypatch)
    before = len(hub.requests)
    assert used() == commit
    assert len(hub.requests) == before


def test_nothing_is_locked_where_one_fails(hub: HubServer, commit: str) -> None:
    assert "no repository" in complaint(zoo("lock", NAME, "hub:alice/none"))
    assert not LOCK.exists()
    assert "not a reference" in complaint(zoo("lock", "toy"), 2)
    assert "No such file" in complaint(zoo("lock"))


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "not json", "[" * 100_000, '{"schema_version": 1}', '{"schema_version": 2, "weights": {}}',
        '{"schema_version": 1, "weights": []}', '{"schema_version": 1, "weights": {"hub:a/b": {}}}',
        '{"schema_version": 1, "weights": {"hub:a/b": {"commit": "x", "locked": "", "files": {}}}}',
        '{"schema_version": 1, "weights": {}, "more": 1}',
    ],
)  # fmt: skip
def test_a_damaged_file_stops_everything(hub: HubServer, commit: str, text: str) -> None:
    LOCK.write_text(text)
    assert "zoo.lock: " in complaint(zoo("score", "-d", NAME, "photo.png"))
    assert "zoo.lock: " in complaint(zoo("lock", NAME))
    assert LOCK.read_text() == text


HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
ENTRIES = st.builds(
    lockfile.Entry,
    commit=HEX.map(lambda text: text[:40]),
    locked=st.dates().map(str),
    files=st.dictionaries(
        st.text(min_size=1, max_size=9), st.builds(lockfile.File, sha256=HEX, bytes=st.integers(0, 2**40)), max_size=3
    ),
)


@settings(max_examples=20, deadline=None)
@given(entries=st.dictionaries(st.text(max_size=20), ENTRIES, max_size=3))
def test_what_is_written_is_read(entries: dict[str, lockfile.Entry], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("lock") / "zoo.lock"
    lockfile.write(path, entries)
    assert lockfile.read(path) == entries


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be written"):
        lockfile.write(tmp_path / "none" / "zoo.lock", {})
    assert issubclass(WeightsError, ZooError)

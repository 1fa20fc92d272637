"""`zoo weights`: listing, pulling, verifying, and taking in files that the user brings."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save, save_file
from torch import nn

from detector_zoo import registry, weights
from detector_zoo.cli import main
from detector_zoo.detector import TorchDetector, Weights
from detector_zoo.errors import UnknownDetectorError, WeightsError
from detector_zoo.hookspecs import hookimpl
from detector_zoo.info import DetectorInfo
from detector_zoo.weights_import import import_file

from hub_server import HubServer

TENSORS = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2)}
WIDE = {"fc.weight": torch.ones(4, 3), "fc.bias": torch.ones(4)}


class Tiny(TorchDetector):
    @classmethod
    def from_weights(cls, loaded: Weights) -> Tiny:
        detector = cls()
        detector.network = nn.Sequential()
        detector.network.add_module("fc", nn.Linear(3, loaded.spec.config.get("out", 2)))
        detector.network.load_state_dict(dict(loaded.tensors))
        return detector


class Plain:
    """A detector that works without weights."""


@pytest.fixture
def server() -> Any:
    with HubServer() as running:
        yield running


@pytest.fixture
def tiny(fake_plugins: Any, tmp_path: Path, server: HubServer) -> HubServer:
    """A detector `tiny` with weights `base` (at a url), `wide` (to bring, hash known) and `loose` (hash unknown)."""
    base, wide = save(TENSORS), save(WIDE)
    entries = {
        "tiny.base": {
            "source": "url:" + server.put("/base", base),
            "sha256": hashlib.sha256(base).hexdigest(),
            "bytes": len(base),
            "config": {"out": 2},
            "preprocessing": {"crop": 224},
        },
        "tiny.wide": {
            "source": "file:",
            "how_to_get": "Ask for it",
            "sha256": hashlib.sha256(wide).hexdigest(),
            "config": {"out": 4},
        },
        "tiny.loose": {"source": "file:", "how_to_get": "Ask for it"},
        "tiny.none": {"source": None},
        "absent.base": {"source": "file:"},
        "backbone.trunk": {"source": "hub:org/trunk/w.safetensors", "revision": "main", "how_to_get": "Download it"},
    }
    path = tmp_path / "theirs.yaml"
    document = {"schema_version": 1, "weights": {name: {"why": "a test"} | entry for name, entry in entries.items()}}
    path.write_text(json.dumps(document))
    module = ModuleType("fake_tiny")

    @hookimpl
    def register_detectors(register: Any) -> None:
        register(DetectorInfo(name="tiny", summary="tiny", load=f"{__name__}:Tiny", default_tag="base", registry=path))
        register(DetectorInfo(name="plain", summary="plain", load=f"{__name__}:Plain"))

    vars(module)["register_detectors"] = register_detectors
    fake_plugins.add("tiny", module)
    return server


def file_of(path: Path, tensors: dict[str, torch.Tensor], **metadata: Any) -> Path:
    save_file(tensors, path, {"detector_zoo": json.dumps(metadata)} if metadata else None)
    return path


def failure(call: Callable[[], Any], kind: type[Exception] = WeightsError) -> Any:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


def zoo(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["weights", *map(str, arguments)], catch_exceptions=False)


# --------------------------------------------------------------------------------------------------------- import


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_tag_of_the_users_own(tiny: HubServer, tmp_path: Path, own_home: Path, suffix: str) -> None:
    file = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save({"model": {f"module.{key}": value for key, value in TENSORS.items()}}, file)
    else:
        file_of(file, TENSORS)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    spec = import_file("tiny.mine", file)
    file.unlink()
    assert (spec.origin, spec.sha256) == (str(own_home / "registry.yaml"), digest)
    assert (spec.config, spec.preprocessing) == ({"out": 2}, {"crop": 224}), "those of the default weights"
    assert not spec.verified
    registry.registry.cache_clear()
    assert registry.resolve("tiny.mine")[1] == spec
    assert torch.equal(weights.load_weights(spec).tensors["fc.weight"], TENSORS["fc.weight"])
    assert weights.state(spec).startswith("cached ")
    assert weights.verify(spec) == own_home / "weights" / "tiny.mine.safetensors"


def test_own_weights_of_another_architecture(tiny: HubServer, tmp_path: Path, own_home: Path) -> None:
    file = file_of(tmp_path / "w.safetensors", WIDE)
    error = failure(lambda: import_file("tiny.mine", file))
    assert "tiny.mine: does not fit Tiny: key 'fc.weight' has shape [4, 3], expected [2, 3]" in str(error)
    assert not list(own_home.rglob("tiny.mine*")), "nothing of it is kept"
    assert not (own_home / "registry.yaml").exists()
    assert import_file("tiny.mine", file, like="tiny.wide").config == {"out": 4}
    failure(lambda: import_file("tiny.more", file, like="tiny.unknown"), UnknownDetectorError)


def test_what_a_trainer_leaves_in_the_file(tiny: HubServer, tmp_path: Path) -> None:
    calibration = {"scale": 2.0, "offset": 0.5, "fitted_on": "mine"}
    file = file_of(tmp_path / "w.safetensors", WIDE, config={"out": 4}, calibration=calibration, licence="MIT")
    spec = import_file("tiny.mine", file)
    assert spec.config == {"out": 4}
    assert spec.preprocessing == {"crop": 224}
    assert spec.calibration == registry.Calibration(**calibration)
    for key, value in (("verified", True), ("source", "hub:a/b/c"), ("sha256", "0" * 64), ("nonsense", 1)):
        claims = file_of(tmp_path / "x.safetensors", TENSORS, **{key: value})
        assert f"unknown key '{key}'" in str(failure(lambda claims=claims: import_file("tiny.x", claims)))
    odd = file_of(tmp_path / "x.safetensors", TENSORS, threshold="high")
    assert "threshold: expected a number" in str(failure(lambda: import_file("tiny.x", odd)))
    save_file(TENSORS, tmp_path / "x.safetensors", {"detector_zoo": "{"})
    assert "metadata detector_zoo" in str(failure(lambda: import_file("tiny.x", tmp_path / "x.safetensors")))


def test_importing_again(tiny: HubServer, tmp_path: Path) -> None:
    first = file_of(tmp_path / "a.safetensors", TENSORS)
    second = file_of(tmp_path / "b.safetensors", {**TENSORS, "fc.bias": torch.zeros(2)})
    import_file("tiny.other", first)
    import_file("tiny.mine", first)
    import_file("tiny.mine", first)
    error = failure(lambda: import_file("tiny.mine", second))
    assert "--replace" in (error.hint or "")
    spec = import_file("tiny.mine", second, replace=True)
    assert weights.load_weights(spec).tensors["fc.bias"].sum() == 0
    assert [spec.name for spec in registry.specs_of("tiny") if spec.origin != str(tmp_path / "theirs.yaml")] == [
        "tiny.mine",
        "tiny.other",
    ]


def test_known_weights(tiny: HubServer, tmp_path: Path, own_home: Path) -> None:
    right = tmp_path / "right"
    right.write_bytes(save(WIDE))
    wrong = file_of(tmp_path / "wrong", {**WIDE, "fc.bias": torch.zeros(4)})
    error = failure(lambda: import_file("tiny.wide", wrong))
    assert "expected" in str(error)
    assert error.hint == "this is not the file that tiny.wide means: import it under a tag of your own"
    spec = import_file("tiny.wide", right)
    assert spec.origin == str(tmp_path / "theirs.yaml")
    assert not (own_home / "registry.yaml").exists()
    assert weights.load_weights(spec).tensors["fc.bias"].shape == (4,)


def test_known_weights_without_a_hash(tiny: HubServer, tmp_path: Path) -> None:
    file = file_of(tmp_path / "w", TENSORS)
    for name in ("tiny.loose", "tiny.none"):
        loaded = weights.load_weights(import_file(name, file))
        assert loaded.spec.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_download_by_hand_instead_of_a_fetch(tiny: HubServer, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(save(TENSORS))
    weights.fetch(import_file("tiny.base", tmp_path / "w"))
    assert tiny.requests == []


def test_a_backbone(tiny: HubServer, tmp_path: Path) -> None:
    spec = import_file("backbone.trunk", file_of(tmp_path / "w", WIDE))
    assert set(weights.read(weights.fetch(spec))) == set(WIDE)
    failure(lambda: import_file("backbone.unknown", tmp_path / "w"), UnknownDetectorError)


def test_what_cannot_be_imported(tiny: HubServer, tmp_path: Path, fake_plugins: Any, own_home: Path) -> None:
    fake_plugins.add("ruined", ImportError("no module named ruin"))
    file = file_of(tmp_path / "w", TENSORS)
    assert "no installed plugin" in str(failure(lambda: import_file("absent.base", file), UnknownDetectorError))
    assert "no module named ruin" in str(failure(lambda: import_file("ruined.x", file), UnknownDetectorError))
    assert "unknown detector" in str(failure(lambda: import_file("tinny.x", file), UnknownDetectorError))
    assert "works without weights" in str(failure(lambda: import_file("plain.x", file), UnknownDetectorError))
    assert "no such file" in str(failure(lambda: import_file("tiny.x", tmp_path / "none")))
    for name in ("tiny", "tiny.", "tiny.a/b", "tiny.A"):
        assert "has the form method.tag" in str(failure(lambda name=name: import_file(name, file)))
    (tmp_path / "junk").write_bytes(b"junk")
    assert "cannot be read" in str(failure(lambda: import_file("tiny.x", tmp_path / "junk")))
    (own_home / "registry.yaml").write_text("schema_version: 1\nweights: [broken]")
    assert "weights: expected a mapping" in str(failure(lambda: import_file("tiny.x", file)))
    assert (own_home / "registry.yaml").read_text().endswith("[broken]"), "not overwritten"


def test_a_malicious_file_is_not_run(tiny: HubServer, tmp_path: Path, own_home: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"model": TENSORS, "x": Bomb()}, tmp_path / "w.pth")
    error = failure(lambda: import_file("tiny.x", tmp_path / "w.pth"))
    assert "refused, it holds more than tensors" in str(error)
    assert not (tmp_path / "executed").exists()
    assert not list(own_home.rglob("tiny.x.*"))


# ---------------------------------------------------------------------------------------------------- command line


def test_list(tiny: HubServer, own_home: Path) -> None:
    (own_home / "registry.yaml").write_text("schema_version: 9")
    done = zoo("list", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["tiny.base"]["state"] == "at the authors' server 0.2 kB"
    assert rows["tiny.base"]["path"] is None
    assert rows["absent.base"]["state"] == "bring your own"
    assert rows["corvi.clipdet"]["bytes"] == 282549121
    assert "schema_version 9" in done.stderr
    table = zoo("list").stdout
    assert "tiny.none" in table
    assert "not published" in table
    assert tiny.requests == []


def test_pull_path_verify(tiny: HubServer, own_home: Path) -> None:
    missing = zoo("path", "tiny")
    assert missing.exit_code == 1
    assert missing.stderr.splitlines() == [
        "Error: tiny.base: not on this machine (at the authors' server 0.2 kB)",
        "Hint: zoo weights pull tiny.base",
    ]
    pulled = zoo("pull", "tiny")
    assert (pulled.exit_code, pulled.stdout) == (0, "tiny.base: cached 0.2 kB\n")
    file = own_home / "weights" / "tiny.base.safetensors"
    assert zoo("path", "tiny.base").stdout == f"{file}\n"
    assert load_file(file).keys() == TENSORS.keys()
    assert f"tiny.base: ok {file}" in zoo("verify").stdout.splitlines()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    broken = zoo("verify", "tiny.base")
    assert broken.exit_code == 1
    assert f"{file} has sha256" in broken.stderr


def test_pull_many(tiny: HubServer) -> None:
    done = zoo("pull", "tiny.wide", "tiny.base", "tiny.nope")
    assert done.exit_code == 1
    assert done.stdout == "tiny.base: cached 0.2 kB\n"
    assert "Error: tiny.wide: no command can fetch it" in done.stderr
    assert "Hint: Ask for it; then run: zoo weights import tiny.wide FILE" in done.stderr
    assert "Error: unknown weights 'tiny.nope'" in done.stderr
    assert done.stderr.rstrip().endswith("Error: 2 of 3 failed")
    for arguments in ((), ("--all", "tiny")):
        assert zoo("pull", *arguments).exit_code == 2
    assert zoo("pull", "tiny.nope").exit_code == 2


def test_pull_all_takes_what_can_be_had(tiny: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled: list[str] = []
    monkeypatch.setattr(weights, "fetch", lambda spec, progress: pulled.append(spec.name))
    zoo("pull", "--all")
    assert "tiny.base" in pulled
    assert "cnnspot.blur_jpg_0_5" in pulled
    assert not {"tiny.wide", "tiny.none", "backbone.trunk"} & set(pulled)


def test_import_command(tiny: HubServer, tmp_path: Path) -> None:
    file = file_of(tmp_path / "w", TENSORS)
    done = zoo("import", "tiny.mine", file)
    assert (done.exit_code, done.stdout) == (0, "tiny.mine: cached 0.2 kB\n")
    loose = zoo("import", "tiny.loose", file)
    assert "nothing is known to verify it against" in loose.stderr
    other = zoo("import", "tiny.mine", file_of(tmp_path / "x", {**TENSORS, "fc.bias": torch.zeros(2)}))
    assert other.exit_code == 1
    assert "--replace" in other.stderr
    assert zoo("import", "tiny.mine", tmp_path / "x", "--replace").exit_code == 0
    assert zoo("import", "tiny.wider", file_of(tmp_path / "y", WIDE), "--like", "tiny.wide").exit_code == 0
    assert zoo("import", "tiny.mine", tmp_path / "none").exit_code == 2


def test_the_listing_is_light() -> None:
    code = (
        "import sys; from detector_zoo.cli.weights import command\n"
        "command(['list'], standalone_mode=False)\n"
        "print(sorted({'torch', 'numpy', 'rich', 'huggingface_hub', 'safetensors'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"

"""`-d hub:org/name`: weights that somebody pushed, without any code of theirs, and hostile repositories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from detector_zoo import hub_refs, load
from detector_zoo.errors import UnknownDetectorError, WeightsError, ZooError
from detector_zoo.hub_specs import FILES
from detector_zoo.training import artifact
from hub_toys import REPO, run_folder, zoo
from test_weights import go_offline, point_at

from conftest import photo
from hub_server import HubServer


@pytest.fixture
def commit(hub: HubServer, run: Path) -> str:
    """The commit of a repository that holds the run."""
    return zoo("push", run, "--repo", REPO).stdout.strip().rpartition("@")[2]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    photo().save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def failure(name: str = f"hub:{REPO}") -> ZooError:
    hub_refs.forget()
    with pytest.raises(ZooError) as caught:
        load(name, device="cpu")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return caught.value


def row(*words: object) -> dict[str, Any]:
    result = zoo("score", *words, "--device", "cpu", "--format", "json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def spoilt(run: Path, change: Callable[[dict[str, Any]], None]) -> dict[str, bytes]:
    """The run's files with another spec."""
    document = yaml.safe_load((run / "weights.yaml").read_text())
    change(document["weights"]["toy.mine"])
    files = {name: (run / name).read_bytes() for name in ("weights.safetensors",)}
    return files | {"weights.yaml": yaml.safe_dump(document).encode()}


def test_pushed_weights_score_as_they_did_here(hub: HubServer, run: Path, commit: str, picture: Path) -> None:
    here = row("-d", "toy", "--weights", run, picture)
    there = row("-d", f"hub:{REPO}", picture)
    assert there["log_odds"] == pytest.approx(here["log_odds"], abs=1e-6)
    assert (there["label"], there["threshold"]) == (here["label"], here["threshold"])
    assert there["weights_sha256"] == here["weights_sha256"]
    assert there["detector"] == "toy"
    assert there["weights"] == f"hub:{REPO}@{commit}"


def test_every_way_to_name_it(hub: HubServer, commit: str, picture: Path) -> None:
    loaded = load(f"hub:{REPO}", device="cpu")
    expected = loaded.score([picture])
    for name in (f"hub:{REPO}@main", f"hub:{REPO}@{commit}", loaded.name):
        assert load(name, device="cpu").score([picture]) == expected
    assert loaded.name == f"toy.hub:{REPO}@{commit}"
    assert "not of cnnspot" in str(failure(f"cnnspot.hub:{REPO}"))


def test_a_commit_stays_what_it_was(hub: HubServer, commit: str, tmp_path: Path, picture: Path) -> None:
    old = load(f"hub:{REPO}", device="cpu").score([picture])
    assert zoo("push", run_folder(tmp_path / "new", seed=1), "--repo", REPO).exit_code == 0
    assert load(f"hub:{REPO}@{commit}", device="cpu").score([picture]) == old
    # A run asks once what a branch is at: all its rows are of one commit.
    assert load(f"hub:{REPO}", device="cpu").score([picture]) == old
    hub_refs.forget()
    assert load(f"hub:{REPO}", device="cpu").score([picture]) != old


def test_the_other_commands(hub: HubServer, commit: str, picture: Path, tmp_path: Path) -> None:
    name = f"hub:{REPO}"
    info = zoo("info", name)
    assert info.exit_code == 0
    for words in (f"toy.hub:{REPO}@{commit}", "Apache-2.0", "verified      no: published by alice on the Hub"):
        assert words in info.stdout
    assert zoo("weights", "path", f"{name}@{commit}").exit_code == 1
    pulled = zoo("weights", "pull", name)
    assert pulled.exit_code == 0
    assert "cached" in pulled.stdout
    assert Path(zoo("weights", "path", name).stdout.strip()).is_file()
    assert "ok" in zoo("weights", "verify", name).stdout
    labelled = tmp_path / "set"
    for label in ("real", "fake"):
        (labelled / label).mkdir(parents=True)
        for seed in range(2):
            photo(seed=seed + 10 * (label == "fake")).save(labelled / label / f"{seed}.png")
    done = zoo("eval", "-d", name, "--data", labelled, "--resamples", 100, "--format", "json", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert f"toy.hub:{REPO}@{commit}" in done.stdout
    drawn = zoo("audit", "invariance", "-d", name, picture, "--device", "cpu")
    assert drawn.exit_code == 0, drawn.output


def test_it_does_not_touch_the_catalogues_weights(hub: HubServer, commit: str, own_home: Path) -> None:
    assert zoo("weights", "pull", f"hub:{REPO}").exit_code == 0
    (record,) = (path for path in (own_home / "weights").iterdir() if path.suffix == ".json")
    assert record.name == f"toy.hub%3Aalice%2Ftoy-detector%40{commit}.json"


def test_cached_and_offline(
    hub: HubServer, commit: str, picture: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = load(f"hub:{REPO}", device="cpu").score([picture])
    hub_refs.forget()
    with monkeypatch.context() as patch:
        go_offline(patch)
        before = len(hub.requests)
        assert load(f"hub:{REPO}", device="cpu").score([picture]) == expected
        assert load(f"hub:{REPO}@{commit}", device="cpu").score([picture]) == expected
        assert len(hub.requests) == before
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cold"))
        assert "not in the cache, and HF_HUB_OFFLINE" in str(failure())
    hub_refs.forget()
    point_at(monkeypatch, "http://127.0.0.1:9")
    assert load(f"hub:{REPO}", device="cpu").score([picture]) == expected
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cold"))
    assert "cannot fetch" in str(failure())


def test_refusals_of_the_server(hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no repository alice/none, or it is private (401)" in str(failure("hub:alice/none"))
    assert "no revision v9" in str(failure(f"hub:{REPO}@v9"))
    hub.gate(REPO, "hf_other")
    assert "no access (403)" in str(failure())
    monkeypatch.delenv("HF_TOKEN")
    error = failure()
    assert "(401)" in str(error)
    assert "hf auth login" in str(error.hint)
    hub.status = 500
    assert "answered 500" in str(failure())


@pytest.mark.parametrize(
    "name",
    [
        "hub:", "hub:x", "hub:a/b/c", "hub:../etc", "hub:a/..", "hub:a/b@", "hub:a/b@../x", "hub:a/b@a..b", "hf:x",
        "hub:a/b#generated=x;real=y", "url:http://x/y", "hub:https://evil/x", "hub:a/b\n", "Toy.hub:a/b", "x/y",
    ],
)  # fmt: skip
def test_names_that_are_no_reference(hub: HubServer, name: str) -> None:
    with pytest.raises(UnknownDetectorError, match="not a reference to the Hub") as caught:
        load(name)
    assert caught.value.exit_code == 2
    assert hub.requests == []


def test_a_method_that_is_not_installed(hub: HubServer, run: Path) -> None:
    files = spoilt(run, lambda spec: None)
    files["weights.yaml"] = files["weights.yaml"].replace(b"toy.mine", b"exotic.mine")
    hub.commit(REPO, files)
    error = failure()
    assert isinstance(error, UnknownDetectorError)
    assert "'exotic', which no installed plugin provides" in str(error)
    assert error.hint == "zoo plugins shows what is installed"
    hub.commit(REPO, {"README.md": b"---\ndetector_zoo:\n  package: zoo-exotic\n---\n# x\n"})
    assert "pip install zoo-exotic" in str(failure().hint)
    hub.commit(REPO, {"README.md": b"---\ndetector_zoo:\n  package: 'x; rm -rf ~'\n---\n"})
    assert "rm" not in str(failure().hint)


def test_only_pickles(hub: HubServer, run: Path) -> None:
    hub.commit(REPO, {"pytorch_model.bin": b"\x80\x04.", "model.pth": b"\x80\x04."})
    error = failure()
    assert "no file weights.yaml" in str(error)
    assert "hf:org/model" in str(error.hint)
    hub.commit(REPO, {"weights.yaml": (run / "weights.yaml").read_bytes()})
    assert "no file weights.safetensors" in str(failure())


def test_a_pickle_in_disguise(hub: HubServer, run: Path) -> None:
    import hashlib
    import pickle

    data = pickle.dumps({"w": [1.0]})
    facts = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    hub.commit(REPO, spoilt(run, lambda spec: spec.update(facts)) | {"weights.safetensors": data})
    assert "not safetensors" in str(failure())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda spec: spec.update(source="url:https://evil.example/w"), "expected file:"),
        (lambda spec: spec.update(source="hub:other/repo/w.safetensors"), "expected file:"),
        (lambda spec: spec.update(source="package:os/../../w"), "source"),
        (lambda spec: spec.update(source="file:/etc/passwd"), "source"),
        (lambda spec: spec.update(format="pth"), "format safetensors"),
        (lambda spec: spec.pop("sha256"), "expected sha256"),
        (lambda spec: spec.pop("bytes"), "expected sha256, bytes"),
        (lambda spec: spec.update(sha256="0" * 64), "another file, or changed"),
        (lambda spec: spec.update(bytes=10**12), "at most"),
        (lambda spec: spec.update(config={"width": 10**9}), "number larger than"),
        (lambda spec: spec.update(config={"width": 7}), "shape"),
        (lambda spec: spec.update(config={"path": "/etc/passwd"}), "does not fit Toy"),
        (lambda spec: spec.update(unknown=1), "unknown key 'unknown'"),
        (lambda spec: spec.update(summary="x" * 300_000), "at most 256000 are read"),
        (lambda spec: spec.update(backbone="backbone.nobody_has"), "in no catalogue"),
    ],
)
def test_specs_that_are_not_followed(hub: HubServer, run: Path, change: Any, words: str) -> None:
    hub.commit(REPO, spoilt(run, change))
    assert words in str(failure())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [x]\n" + "\n".join(f"b{i}: [*a, *a]" for i in range(9)), "aliases are not read"),
        ("[" * 5000, "nested too deeply"),
        (
            "schema_version: 1\nweights: {toy.mine: {source: 'file:', why: x, threshold: " + "9" * 5000 + "}}",
            "of that length",
        ),
        ("schema_version: 1\nweights: {toy.mine: {source: 'file:', why: x, config: {a: " + "9" * 30 + "}}}", "larger"),
        ("schema_version: 1\nweights: {toy.mine: {source: 'file:', why: x, config: {a: 2020-01-01}}}", "date"),
        ("!!python/object/apply:os.system ['touch /tmp/pwned']", "python/object"),
        ("schema_version: 99\nweights: {}", "schema_version 99"),
        ("schema_version: 1\nweights: {}", "expected one set of weights, got 0"),
        ("\x1b[2J not yaml: [", "YAML"),
        ("just text", "schema_version is missing"),
    ],
)
def test_hostile_yaml(hub: HubServer, run: Path, text: str, words: str) -> None:
    hub.commit(REPO, {"weights.yaml": text.encode(), "weights.safetensors": b"x"})
    error = failure()
    assert isinstance(error, WeightsError)
    assert words.lower() in str(error).lower()
    assert "\x1b" not in str(error)


def test_a_spec_without_an_announced_end(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit(REPO, spoilt(run, lambda spec: None))
    monkeypatch.setitem(FILES["hub"], "weights.yaml", 100)  # type: ignore[arg-type]
    hub.requests.clear()
    assert "at most 100 are read" in str(failure())
    assert {request.method for request in hub.requests} == {"HEAD"}


def test_names_that_lead_away_are_not_fetched(
    hub: HubServer, run: Path, commit: str, picture: Path, tmp_path: Path
) -> None:
    hub.commit(REPO, {"../evil.txt": b"x", "/abs": b"x", "a/../../evil.py": b"x", "modeling.py": b"raise SystemExit"})
    hub.requests.clear()
    load(f"hub:{REPO}", device="cpu").score([picture])
    assert {request.path.rpartition("/")[2] for request in hub.requests} == {"weights.yaml", "weights.safetensors"}
    assert not [path for path in tmp_path.rglob("*") if path.name in {"evil.txt", "evil.py", "abs", "modeling.py"}]


def test_a_claim_to_be_verified_is_not_believed(hub: HubServer, run: Path) -> None:
    hub.commit(REPO, spoilt(run, lambda spec: spec.update(verified=True, variants={"x": {}})))
    spec = load(f"hub:{REPO}", device="cpu").spec
    assert spec is not None
    assert not spec.verified
    assert spec.variants == {}
    assert "not verified by this project" in spec.why


def test_the_hubs_folder_is_a_run_again(hub: HubServer, commit: str, tmp_path: Path, picture: Path) -> None:
    for name, data in hub.repos[REPO].commits[commit].items():
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    expected = load(f"hub:{REPO}", device="cpu").score([picture])
    assert artifact.load_detector(tmp_path / "copy", device="cpu").score([picture]) == expected

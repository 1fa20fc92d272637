"""`zoo push`: what reaches the Hub, what does not, and what is said where it cannot."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

from detector_zoo import convert
from detector_zoo.hub_specs import front_matter
from hub_toys import REPO, complaint, run_folder, zoo
from test_weights import go_offline, point_at

from hub_server import HubServer, Repo

PUBLISHED = {"README.md", "training.json", "weights.safetensors", "weights.yaml"}
TOKEN = "hf_" + "a1B2" * 8


def head(hub: HubServer) -> dict[str, object]:
    repo = hub.repos[REPO]
    return front_matter(repo.commits[repo.branches["main"]]["README.md"].decode())


def test_one_commit_with_all_that_is_needed(hub: HubServer, run: Path) -> None:
    result = zoo("push", run, "--repo", REPO)
    assert result.exit_code == 0, result.output
    (commit,) = hub.repos[REPO].commits
    assert result.stdout == f"hub:{REPO}@{commit}\n"
    files = hub.repos[REPO].commits[commit]
    assert set(files) == PUBLISHED
    assert files["weights.safetensors"] == (run / "weights.safetensors").read_bytes()
    spec = yaml.safe_load(files["weights.yaml"])["weights"]["toy.mine"]
    assert spec["source"] == "file:"
    assert "published by its trainer" in spec["why"]
    assert spec["sha256"] == convert.sha256_of(run / "weights.safetensors")
    assert not hub.repos[REPO].private
    assert hub.cards == [files["README.md"].decode()]


def test_private(hub: HubServer, run: Path) -> None:
    assert zoo("push", run, "--repo", REPO, "--private").exit_code == 0
    assert hub.repos[REPO].private


def test_the_card_is_one_that_the_hub_renders(hub: HubServer, run: Path) -> None:
    assert zoo("push", run, "--repo", REPO, "--dataset", "alice/holiday").exit_code == 0
    card = ModelCard(hub.cards[0])
    assert card.data.library_name == "detector-zoo"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["alice/holiday"]
    assert {"detector-zoo", "toy"} <= set(card.data.tags or ())
    assert card.data.metrics == ["roc_auc"]
    results = {result.dataset_name: result for result in card.data.eval_results or ()}
    assert results["validation slice of the training data"].metric_value == 0.91
    assert "0.800, 0.970" in str(results["validation slice of the training data"].metric_name)
    assert results["validation slice of the training data: edit"].metric_value == 0.7
    assert head(hub)["detector_zoo"] == {"method": "toy", "weights": "toy.mine", "package": "zoo-toy"}
    for heading in ("## Training data", "## Results", "## Limits and known shortcuts", "## Licence", "## Use"):
        assert heading in card.text
    assert f"zoo score -d hub:{REPO}" in card.text


def test_keys_of_the_publishers_own_stay(hub: HubServer, run: Path) -> None:
    card = run / "CARD.md"
    card.write_text("---\nlanguage: en\nlicense: mit\n---\n# Mine\n\nText.\n")
    assert zoo("push", run, "--repo", REPO).exit_code == 0
    assert head(hub)["language"] == "en"
    assert head(hub)["license"] == "mit"
    assert hub.cards[0].count("\n---\n") == 1
    assert "# Mine" in hub.cards[0]


@pytest.mark.parametrize(
    ("licence", "expected", "name"),
    [
        ("Apache-2.0", "apache-2.0", None),
        ("GPL-3.0-or-later", "gpl-3.0", None),
        ("My own, ask me", "other", "my-own-ask-me"),
        ("", "unknown", None),
    ],
)
def test_licences(hub: HubServer, run: Path, tmp_path: Path, licence: str, expected: str, name: str | None) -> None:
    folder = run_folder(tmp_path / "other", licence=licence)
    result = zoo("push", folder, "--repo", REPO)
    assert result.exit_code == 0
    assert head(hub)["license"] == expected
    assert head(hub).get("license_name") == name
    assert ("no licence is stated" in result.stderr) is (not licence)


def test_a_licence_that_is_given_is_in_spec_and_card(hub: HubServer, run: Path) -> None:
    assert zoo("push", run, "--repo", REPO, "--licence", "MIT").exit_code == 0
    assert head(hub)["license"] == "mit"
    files = hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]
    assert yaml.safe_load(files["weights.yaml"])["weights"]["toy.mine"]["licence"] == "MIT"


def test_a_dry_run_talks_to_no_server(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    result = zoo("push", run, "--repo", REPO, "--dry-run", "--private")
    assert result.exit_code == 0
    for name in PUBLISHED:
        assert name in result.stdout
    assert "library_name: detector-zoo" in result.stdout
    assert "private" in result.stdout
    assert hub.requests == []
    assert hub.repos == {}
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_what_stays_here(hub: HubServer, run: Path) -> None:
    left = {
        ".env": "secret", "token": "secret", "deploy.pem": "secret", "optimiser.pt": "pickle", "old.PTH": "pickle",
        "data.npy": "pickle", "half.part": "cache", "thoughts.odt": "not part",
    }  # fmt: skip
    for name in left:
        (run / name).write_bytes(b"x")
    for name, inner in (("checkpoints", "000000008"), ("__pycache__", "x.pyc"), (".cache", "x")):
        (run / name).mkdir()
        (run / name / inner).write_bytes(b"x")
    result = zoo("push", run, "--repo", REPO)
    assert result.exit_code == 0, result.output
    assert set(hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]) == PUBLISHED
    for name, why in (left | {"checkpoints": "checkpoint", "__pycache__": "cache", ".cache": "cache"}).items():
        (line,) = (line for line in result.stderr.splitlines() if line.startswith(f"Left out: {name}: "))
        assert why in line


@pytest.mark.parametrize("name", ["training.json", "CARD.md", "LICENSE"])
def test_a_secret_in_a_text_stops_everything(hub: HubServer, run: Path, name: str) -> None:
    with (run / name).open("a") as file:
        file.write(f'\n"token": "{TOKEN}"\n')
    said = complaint(zoo("push", run, "--repo", REPO))
    assert "looks like a secret" in said
    assert TOKEN not in said
    assert hub.requests == []


def test_a_path_of_this_machine_is_pointed_out(hub: HubServer, run: Path) -> None:
    record = json.loads((run / "training.json").read_text()) | {"note": "/home/jane/photos"}
    (run / "training.json").write_text(json.dumps(record))
    result = zoo("push", run, "--repo", REPO, "--dry-run")
    assert "training.json names a folder of this machine, /home/jane" in result.stderr


def test_not_what_it_says(hub: HubServer, run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    (run / "training.json").unlink()
    (run / "training.json").symlink_to(outside)
    assert "leads out of its folder" in complaint(zoo("push", run, "--repo", REPO))
    (run / "training.json").unlink()
    weights = run / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert "sha256" in complaint(zoo("push", run, "--repo", REPO))
    import pickle

    weights.write_bytes(pickle.dumps({"w": 1}))
    assert "weights.safetensors" in complaint(zoo("push", run, "--repo", REPO))
    assert "no weights.yaml" in complaint(zoo("push", tmp_path / "work", "--repo", REPO))
    assert hub.requests == []


def test_a_card_that_is_not_published(hub: HubServer, run: Path, tmp_path: Path) -> None:
    card = run / "CARD.md"
    card.write_bytes(b"# \xff\xfe")
    assert "CARD.md: not UTF-8" in complaint(zoo("push", run, "--repo", REPO))
    os.truncate(card, 10**10)  # sparse: it takes no space
    assert "CARD.md: larger than 1000000 bytes" in complaint(zoo("push", run, "--repo", REPO))
    card.unlink()
    (tmp_path / "secret").write_text("# not yours")
    card.symlink_to(tmp_path / "secret")
    assert "leads out of its folder" in complaint(zoo("push", run, "--repo", REPO))
    assert hub.requests == []


def test_a_card_is_shown_without_what_moves_the_cursor(hub: HubServer, run: Path) -> None:
    (run / "CARD.md").write_text(
        "---\nlanguage: en\ntags: &a [x]\nmore: *a\n---\n# M\x1b[2J\x1b]0;owned\x07\n\n<b>\tx</b>\n"
    )
    shown = zoo("push", run, "--repo", REPO, "--dry-run").stdout
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "# M\\x1b[2J" in shown
    assert "<b> x</b>" in shown  # HTML is the Hub's to sanitise: here it is text


def test_what_xet_says(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hf_xet is compiled and speaks with a second server; its refusals come as text."""
    for text, expected, hint in (
        (
            "Network error: HTTP status client error (401 Unauthorized), domain: x/xet-write-token/main",
            "(401)",
            "login",
        ),
        (
            "Network error: HTTP status client error (403 Forbidden), domain: x/xet-write-token/main",
            "(403)",
            "role write",
        ),
        ("Network error: sending request for url (x/xet-write-token/main)", "cannot reach", "HF_HUB_DISABLE_XET=1"),
    ):

        def fails(*words: object, text: str = text, **options: object) -> None:
            raise RuntimeError(text)

        monkeypatch.setattr(HfApi, "create_commit", fails)
        said = complaint(zoo("push", run, "--repo", REPO))
        assert expected in said
        assert hint in said


def test_bars_are_for_terminals(hub: HubServer, run: Path) -> None:
    assert "%|" not in zoo("push", run, "--repo", REPO).stderr


def test_a_pickle_under_the_right_name_and_hash(hub: HubServer, run: Path) -> None:
    import pickle

    weights = run / "weights.safetensors"
    weights.write_bytes(pickle.dumps({"w": 1}))
    document = yaml.safe_load((run / "weights.yaml").read_text())
    document["weights"]["toy.mine"] |= {"sha256": convert.sha256_of(weights), "bytes": weights.stat().st_size}
    (run / "weights.yaml").write_text(yaml.safe_dump(document))
    assert "not safetensors" in complaint(zoo("push", run, "--repo", REPO))
    assert hub.requests == []


@pytest.mark.parametrize("repo", ["toy", "a/b/c", "a/b@main", "../b", "a/-b", "a/b--c", "a/b#x", "", "a b/c"])
def test_names_that_the_hub_does_not_allow(hub: HubServer, run: Path, repo: str) -> None:
    assert "org/name" in complaint(zoo("push", run, "--repo", repo), 2)
    assert hub.requests == []


def test_no_token(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    said = complaint(zoo("push", run, "--repo", REPO))
    assert "no token" in said
    assert "hf auth login" in said
    assert hub.requests == []


@pytest.mark.parametrize(("status", "words"), [(401, "does not accept the token"), (403, "may not write to")])
def test_a_token_that_will_not_do(
    hub: HubServer, run: Path, status: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    if status == 401:
        hub.status = 401
    said = complaint(zoo("push", run, "--repo", REPO))
    assert f"({status})" in said
    assert words in said
    assert TOKEN not in said


def test_somebody_elses_repository(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repos[REPO] = Repo()
    hub.commit(REPO, {"README.md": b"theirs"})
    assert "(403)" in complaint(zoo("push", run, "--repo", REPO))
    assert len(hub.repos[REPO].commits) == 1


def test_the_hub_refuses_the_card(hub: HubServer, run: Path) -> None:
    hub.bad_card = '"license" must be one of'
    said = complaint(zoo("push", run, "--repo", REPO))
    assert "refuses the card" in said
    assert "must be one of" in said
    assert hub.repos[REPO].commits == {}


def test_nobody_answers(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, "http://127.0.0.1:9")
    said = complaint(zoo("push", run, "--repo", REPO))
    assert "cannot reach http://127.0.0.1:9" in said
    assert "HF_ENDPOINT" in said
    go_offline(monkeypatch)
    assert "HF_HUB_OFFLINE" in complaint(zoo("push", run, "--repo", REPO))


def test_again_into_the_same_repository(hub: HubServer, run: Path, tmp_path: Path) -> None:
    first = zoo("push", run, "--repo", REPO).stdout
    second = zoo("push", run_folder(tmp_path / "second", seed=1), "--repo", REPO).stdout
    assert first != second
    assert len(hub.repos[REPO].commits) == 2

"""`zoo new`: the package that it writes is sound as it stands."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from detector_zoo.cli import main
from detector_zoo.cli import new as module
from detector_zoo.testing.properties import examine_all
from detector_zoo.testing.subject import Subject
from detector_zoo.weight_specs import load_file
from strangers import Site, build_wheel, link_environment

ROOT = Path(__file__).resolve().parents[1]
AUTHOR = 'Ada "L" Lovelace \\ Söhne'


def new(*words: object) -> Result:
    return CliRunner().invoke(main, ["new", *map(str, words)])


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("new") / "deep" / "er"
    result = new("my-detector", "--author", AUTHOR, "--out", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"cd {out / 'detector-zoo-my-detector'}" in result.stdout
    assert [path.name for path in out.iterdir()] == ["detector-zoo-my-detector"]
    return out / "detector-zoo-my-detector"


@pytest.fixture
def site(tmp_path: Path, package: Path) -> Iterator[Site]:
    """The package as pip would install it."""
    with Site(tmp_path / "site") as site:
        (site.folder / "detector_zoo_my_detector").symlink_to(package / "src" / "detector_zoo_my_detector")
        site.describe("detector-zoo-my-detector", "my_detector = detector_zoo_my_detector")
        yield site


def test_it_conforms(site: Site) -> None:
    found = list(examine_all(Subject("my-detector")))
    failed = [finding for finding in found if finding.status not in {"ok", "does not apply"}]
    assert failed == []
    assert {f.name for f in found if f.status == "does not apply"} == {"recipes", "heatmap", "evidence"}


def test_its_own_tests_pass_as_generated(site: Site, package: Path) -> None:
    # By name, because an installation that is older than the entry point would not bring it.
    with_plugin = ["-p", "no:detector_zoo", "-p", "detector_zoo.testing.pytest_plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *with_plugin], cwd=package, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "23 passed" in done.stdout


def test_its_metadata(package: Path) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == "detector-zoo-my-detector"
    assert project["authors"] == [{"name": AUTHOR}]
    assert project["entry-points"] == {"detector_zoo": {"my_detector": "detector_zoo_my_detector"}}
    assert AUTHOR in (package / "LICENSE").read_text("utf-8")
    for workflow in sorted((package / ".github" / "workflows").iterdir()):
        assert yaml.safe_load(workflow.read_text("utf-8"))["jobs"]
    (spec,) = load_file(package / "src/detector_zoo_my_detector/registry.yaml").values()
    assert spec.name == "my_detector.lite"
    assert spec.bytes == (package / "src/detector_zoo_my_detector/weights/lite.safetensors").stat().st_size


def test_nothing_is_left_to_fill_in(package: Path) -> None:
    texts = {
        path: path.read_text("utf-8")
        for path in package.rglob("*")
        if path.suffix in {".py", ".md", ".yml", ""} and path.is_file()
    }
    assert len(texts) >= 8
    assert [path for path, text in texts.items() if "%%" in text] == []


def test_it_is_linted_and_its_weights_can_be_made_again(package: Path) -> None:
    before = (package / "src/detector_zoo_my_detector/registry.yaml").read_text()
    subprocess.run([sys.executable, "make_weights.py"], cwd=package, check=True)
    assert (package / "src/detector_zoo_my_detector/registry.yaml").read_text() == before
    for words in (["check", "--select", "E,F,I,B,UP"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, "--isolated", "--line-length", "120", "."]
        done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My-Detector", "'my-detector' would do"),
        ("my detector", "'my-detector' would do"),
        ("9lives", "'lives' would do"),
        ("-x", "No such option"),
        ("a--b", "'a-b' would do"),
        ("../up", "'up' would do"),
        ("", "is not lower-case letters"),
        ("é", "is not lower-case letters"),
        ("all", "means something else"),
        ("hub", "means something else"),
        ("dummy", "'dummy' is taken by detector-zoo"),
        ("mdmf", "'mdmf' is taken by detector-zoo"),
        ("x" * 51, "longer than 50"),
    ],
)
def test_names_that_will_not_do(name: str, said: str, tmp_path: Path) -> None:
    result = new(name, "--out", tmp_path)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["none", "true", "grain", "image", "weights", "torch-detector", "class", "import"])
def test_a_class_of_any_name_is_one_of_its_own(name: str, tmp_path: Path) -> None:
    assert new(name, "--out", tmp_path).exit_code == 0
    (path,) = tmp_path.glob("*/src/*/detector.py")
    classes = [node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
    imported = {"Image", "TorchDetector", "Weights", "Sequence"}
    assert len(set(classes)) == 2
    assert not imported & set(classes)


@pytest.mark.parametrize("name", ["my-detector", "my_detector", "detector-zoo-my-detector"])
def test_names_that_mean_the_same(name: str) -> None:
    values = module.values_of(name)
    assert (values["name"], values["class_name"]) == ("my_detector", "MyDetector")
    assert values["author"] == "The authors of my-detector"


def test_an_author_on_two_lines_is_refused(tmp_path: Path) -> None:
    result = new("x", "--author", 'A"\nmalicious = "', "--out", tmp_path)
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "detector-zoo-x").mkdir()
    result = new("x", "--out", tmp_path)
    assert result.exit_code == 1
    assert "is there already" in result.stderr
    assert list((tmp_path / "detector-zoo-x").iterdir()) == []


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILES", {"make_weights.py": "LICENSE.in"})  # which is no Python
    result = new("x", "--out", tmp_path)
    assert result.exit_code == 1
    assert "make_weights.py failed: SyntaxError" in result.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert "cannot be written" in new("x", "--out", tmp_path / "file" / "below").stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_strangers_package_from_nothing_to_a_score(package: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "DETECTOR_ZOO_PLUGINS"}}
    environment["DETECTOR_ZOO_HOME"] = str(tmp_path / "home")
    binaries = tmp_path / "venv" / "bin"

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(word) for word in command], cwd=package, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    wheels = [build_wheel(project, tmp_path) for project in (ROOT, package)]
    venv.create(tmp_path / "venv", with_pip=True)
    link_environment(tmp_path / "venv")
    run(binaries / "python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", *wheels)
    assert "my_detector" in run(binaries / "zoo", "list", "-q").split()
    tested = run(binaries / "python", "-m", "pytest", "-p", "no:cacheprovider")
    assert "23 passed" in tested
    assert "detector-zoo: " in tested  # the pytest plugin came with the installation
    assert "none fails" in run(binaries / "zoo", "check", "my-detector")
    image = package / "src/detector_zoo_my_detector/examples/generated/0.png"
    row = json.loads(run(binaries / "zoo", "score", "-d", "my_detector", image))
    assert (row["label"], row["error"], row["calibrated"]) == ("generated", "", False)

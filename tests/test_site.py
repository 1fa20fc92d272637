"""What a reader clicks on is there: links between all texts of the repository, and tables that are whole."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import detector_zoo
from detector_zoo import rows, weight_specs

ROOT = Path(__file__).resolve().parents[1]
TEXTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "plugins/*/CARD.md", "examples/*.md") for path in ROOT.glob(pattern)
)
FENCED = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCED.sub(lambda m: m[0].strip("`"), page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(text: Path) -> None:
    prose = FENCED.sub("", text.read_text("utf-8"))
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?\)", prose):
        place = text.parent / target if target else text
        assert place.exists(), target
        assert place.resolve().is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(place), f"{target}#{anchor}"


def test_texts_are_found() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in TEXTS}
    expected = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/index.md"}
    assert names >= expected | {f"plugins/detector_zoo_{m}/CARD.md" for m in ("mdmf", "corvi", "ufd_clip")}


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", ROOT / "tools" / "mkdocs_hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("source", "page", "link", "expected"),
    [
        ("docs/index.md", "index.md", "[a](cli.md#zoo)", "[a](cli.md#zoo)"),
        ("docs/index.md", "index.md", "[a](../README.md)", "[a](project/about.md)"),
        ("README.md", "project/about.md", "[a](docs/cli.md)", "[a](../cli.md)"),
        (
            "README.md",
            "project/about.md",
            "[a](plugins/detector_zoo_mdmf/CARD.md#results)",
            "[a](../methods/mdmf.md#results)",
        ),
        ("README.md", "project/about.md", "[a](LICENSE)", "a"),
        ("README.md", "project/about.md", "[a](nowhere.md)", "[a](nowhere.md)"),
        ("README.md", "project/about.md", "[a](https://a.b/c.md)", "[a](https://a.b/c.md)"),
        ("README.md", "project/about.md", "```\n[a](LICENSE)\n```", "```\n[a](LICENSE)\n```"),
    ],
)
def test_links_of_the_site(hooks: ModuleType, source: str, page: str, link: str, expected: str) -> None:
    assert hooks.linked(link, source, page) == expected


def test_every_public_name_is_on_the_page() -> None:
    shown = re.findall(r"^::: detector_zoo\.(\w+)$", ROOT.joinpath("docs/python.md").read_text("utf-8"), re.MULTILINE)
    assert sorted([*shown, "__version__"]) == sorted(detector_zoo.__all__)


def test_every_key_and_column_is_on_the_page() -> None:
    catalogue, predictions = ROOT.joinpath("docs/schema.md").read_text("utf-8").split("\n## Predictions\n")
    spec, rest = catalogue.split("Keys of `calibration`:\n\n|")
    calibration, result = rest.split("Keys of a figure in `reported` and `reproduced`:\n\n|")
    for text, expected in (
        (spec, weight_specs._SPEC),
        (calibration, weight_specs._CALIBRATION),
        (result, weight_specs._RESULT),
        (predictions, rows._COLUMNS),
    ):
        assert set(re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE)) == set(expected)


def test_citation_is_of_this_version() -> None:
    citation = yaml.safe_load(ROOT.joinpath("CITATION.cff").read_text("utf-8"))
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", detector_zoo.__version__)
    assert "## [Unreleased]" in ROOT.joinpath("CHANGELOG.md").read_text("utf-8")

import base64
import json
import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import html5lib
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from detector_zoo import __version__
from detector_zoo.cli import main
from detector_zoo.errors import DatasetError, ZooError
from detector_zoo.evaluation import datasets, plots
from detector_zoo.evaluation.evaluate import evaluate
from detector_zoo.evaluation.report import leaderboard, read_audit, render, write_report
from detector_zoo.evaluation.results import Results, read
from detector_zoo.loading import load
from detector_zoo.rows import Prediction

from conftest import photo

HOSTILE = '<script>alert(1)</script>"&$x^$_'


def run(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> datasets.DataSet:
    root = tmp_path_factory.mktemp("report") / "set"
    lines = ["path,label,generator,source"]
    for i in range(24):
        label = "real" if i % 2 else "generated"
        photo(64, 56, i).save(root.parent / f"{i:02d}.png")
        generator = "" if i % 2 else HOSTILE.replace('"', '""') if i % 4 else "sd"
        lines.append(f'{i:02d}.png,{label},"{generator}",s')
    (root.parent / "manifest.csv").write_text("\n".join(lines))
    return datasets.load(root.parent)


def scored(data: datasets.DataSet, count: int = 2, **changes: object) -> Results:
    rows = [
        Prediction(
            path=str(sample.path),
            sha256=sample.sha256,
            detector=f"m{which}",
            weights="t",
            core_version=__version__,
            log_odds=float(np.random.default_rng(100 * which + i).normal() * 2 + sample.generated),
            threshold=0.0,
            label="real",
            **{"calibrated": True, **changes},
        )
        for which in range(count)
        for i, sample in enumerate(data.samples)
    ]
    return evaluate(data, rows, resamples=100)


def audit() -> dict[str, object]:
    def metric(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    points = [
        {"perturbation": f"jpeg:{q}", "name": "jpeg", "value": q, "cause": ""}
        | {name: metric(q / 100) for name in ("auroc", "drop", "real", "generated")}
        for q in (90, 50, 70)
    ]
    chain = {**points[0], "perturbation": "screenshot", "name": "screenshot", "value": None}
    return {"audit": "laundering", "schema_version": 1, "origin": {"detector": "m0.t"}, "points": [*points, chain]}


def parsed(page: str):
    """The page as a strict HTML5 parser sees it."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)


def check_page(page: str) -> None:
    tree = parsed(page)
    elements = list(tree.iter())
    tags = {element.tag for element in elements if isinstance(element.tag, str)}
    assert not {"script", "link[rel=stylesheet]", "iframe", "object", "embed", "video"} & tags
    ids = [element.get("id") for element in elements if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in elements:
        for name in ("src", "href", "srcset", "data", "action"):
            value = element.get(name)
            assert value is None or value.startswith(("data:", "#")), value
            if value and value.startswith("#"):
                assert value[1:] in ids
        assert not any(name.startswith("on") for name in element.attrib)
    assert not re.search(r"@import|url\((?!data:)", page)
    for image in tree.iter("img"):
        assert image.get("alt")
        kind, content = re.fullmatch(r"data:image/(svg\+xml|jpeg);base64,(.+)", image.get("src")).groups()
        payload = base64.b64decode(content, validate=True)
        assert payload.startswith(b"<?xml" if kind == "svg+xml" else b"\xff\xd8\xff")
    headings = [int(element.tag[1]) for element in elements if re.fullmatch("h[1-6]", str(element.tag))]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert tree.find("head/meta[@name='viewport']") is not None
    for table in tree.iter("table"):
        assert all(cell.get("scope") for cell in table.iter("th"))


def text_of(page: str) -> str:
    return " ".join(" ".join(parsed(page).find("body").itertext()).split())


def test_page_is_whole_and_escaped(data):
    results = scored(data)
    page = render(results, data=data, audits=[audit()])
    check_page(page)
    text = text_of(page)
    assert HOSTILE in text
    for one in results.detectors:
        assert f"{one.metrics['auroc'].value:.3f} [{one.metrics['auroc'].low:.3f}" in text
        assert "oracle: balanced accuracy at the best threshold on this very set" in text
    assert results.data.sha256 in text
    assert __version__ in text
    figures = [image.get("alt") for image in parsed(page).iter("img") if "svg" in image.get("src")]
    # ROC and DET; a forest and a reliability diagram a detector; the one curve of the audit.
    assert len(figures) == 2 + 2 * 2 + 1
    assert sum(alt.startswith("ROC curves") for alt in figures) == 1
    assert sum("reliability" in alt for alt in figures) == 2


def test_ten_worst_errors_are_the_furthest_on_the_wrong_side(data):
    results = scored(data, 1)
    page = render(results, data=data)
    (one,) = results.detectors
    over = {
        name: -score if label == "generated" else score
        for name, label, score in zip(results.images.name, results.images.label, one.log_odds, strict=True)
    }
    wrong = sorted((name for name in over if over[name] > 0), key=lambda name: -over[name])[:10]
    shown = re.findall(r'<p class="soft">(\d\d\.png)</p>', page)
    assert shown == wrong
    assert 0 < len(wrong) <= 10


def test_worst_errors_show_what_was_scored_with_heatmaps(data, tmp_path):
    result = run("eval", "-d", "dummy", "--data", data.place, "--report", tmp_path / "out", "--resamples", 100)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out/index.html").read_text()
    check_page(page)
    alts = [image.get("alt") for image in parsed(page).iter("img")]
    maps = [alt for alt in alts if alt.startswith("heatmap of")]
    assert 0 < len(maps) <= 10
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "index.html",
        "predictions.parquet",
        "results.csv",
        "results.json",
        "results.md",
    }
    again = render(read(tmp_path / "out"), data=data, detectors=[load("dummy")])
    assert again == page


def test_notes_tell_what_a_reader_must_know(data):
    results = scored(data, 1, calibrated=False)
    text = text_of(render(results))
    assert "m0.t is not calibrated" in text
    assert "images were scored as they are" in text
    assert "reliability diagram" not in text
    abstaining = replace(results.detectors[0], abstained=[0], equalised=True)
    text = text_of(render(replace(results, detectors=[abstaining])))
    assert "abstains on" in text
    assert "scored as they are" not in text


def test_a_detector_without_scores_of_both_classes(data):
    results = scored(data, 1)
    empty = replace(results.detectors[0], metrics={}, oracle={}, generators=[], sources=[], log_odds=[None] * 24)
    page = render(replace(results, detectors=[empty]), data=data)
    check_page(page)
    assert "No detector has scored images of both classes" in text_of(page)


def test_many_detectors_and_generators_fit(data):
    results = scored(data, 9)
    page = render(results)
    check_page(page)
    sources = {image.get("src") for image in parsed(page).iter("img")}
    assert len(sources) == 2 + 2 * 9


def test_figures_do_not_change_from_run_to_run(data):
    results = scored(data, 1)
    assert plots.roc(results) == plots.roc(results)
    assert plots.forest(results.detectors[0], "generator") == plots.forest(results.detectors[0], "generator")


def test_laundering_curves_are_sorted_and_single_points_are_in_the_table(data):
    (figure,) = plots.laundering(audit())
    assert re.findall(r"jpeg:(\d+)", figure.alt) == ["50", "70", "90"]
    text = text_of(render(scored(data, 1), audits=[audit()]))
    assert "screenshot 0.900 [0.800, 1.000]" in text


def test_a_laundering_curve_has_a_hole_where_nothing_is_defined(data):
    holed = audit()
    nothing = {"value": None, "low": None, "high": None}
    holed["points"] = [p | {"auroc": nothing} if p["perturbation"] == "jpeg:70" else p for p in holed["points"]]
    (figure,) = plots.laundering(holed)
    assert "jpeg:70: AUROC nan" in figure.alt
    check_page(render(scored(data, 1), audits=[holed]))


def test_audits_of_the_command_line_are_taken(data, tmp_path):
    result = run("audit", "format", "--data", data.place, "-o", tmp_path / "format.json", "--resamples", 50)
    assert result.exit_code == 0, result.output
    page = render(scored(data, 1), audits=[read_audit(tmp_path / "format.json")])
    check_page(page)
    before = json.loads((tmp_path / "format.json").read_text())["before"]["size"]
    assert f"before: size {before['value']:.3f}" in text_of(page)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "cannot be read as JSON"), ("{}", "not the results of zoo audit")]
)
def test_files_that_are_no_audit(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_audit(tmp_path / "x.json")


def test_leaderboard_keeps_data_sets_apart(data, tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    results = scored(data)
    write_report(results, first)
    newer = replace(
        results.detectors[0], metrics={**results.detectors[0].metrics, "auroc": results.detectors[1].metrics["auroc"]}
    )
    write_report(replace(results, detectors=[newer], created="2999-01-01T00:00:00+00:00"), second)
    other = replace(results, data=replace(results.data, place="other", sha256="0" * 64))
    write_report(other, tmp_path / "3")
    result = run("leaderboard", first, second / "results.json", tmp_path / "3", "-o", tmp_path / "site")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "site/index.html").read_text()
    check_page(page)
    tables = list(parsed(page).iter("table"))
    assert [len(table.findall("tbody/tr")) for table in tables] == [2, 2]
    assert "2999-01-01" in page
    rows = ["".join(row.itertext()) for row in tables[1].findall("tbody/tr")]
    values = [float(re.search(r"(\d\.\d{3})", row)[1]) for row in rows]
    assert values == sorted(values, reverse=True)
    with pytest.raises(DatasetError, match="cannot be read"):
        leaderboard([tmp_path / "none.json"])


def test_hint_without_the_libraries(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("eval", "-d", "dummy", "--data", data.place, "--report", tmp_path / "out")
    assert result.exit_code == 1
    assert "pip install 'detector-zoo[report]'" in result.output
    with pytest.raises(ZooError, match="reports need jinja2 and matplotlib"):
        render(scored(data, 1))


def test_thumbnails_are_small(data, tmp_path):
    big = tmp_path / "big.png"
    photo(900, 600, 1).save(big)
    from detector_zoo.evaluation.report import THUMBNAIL, _thumbnail

    with Image.open(big) as image:
        uri = _thumbnail(image)
    payload = base64.b64decode(uri.split(",")[1])
    path = tmp_path / "small.jpg"
    path.write_bytes(payload)
    with Image.open(Path(path)) as small:
        assert small.size == (THUMBNAIL, THUMBNAIL * 600 // 900)

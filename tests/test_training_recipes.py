"""Recipes: read, changed, checked to the last key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from detector_zoo.training.augment import Augmentation
from detector_zoo.training.course import ImageRecipe
from detector_zoo.training.recipes import RecipeError, build, load
from training_toys import RECIPE


@dataclass(frozen=True)
class Inner:
    lr: float
    name: Literal["adam", "sgd"] = "adam"


@dataclass(frozen=True)
class Outer:
    inner: Inner
    sizes: tuple[int, ...] = ()
    span: tuple[float, float] = (0.0, 1.0)
    weights: Mapping[str, float] = field(default_factory=dict)
    limit: int | None = None
    flag: bool = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "paper.yaml").write_text("inner: {lr: 1e-4}\nsizes: [1, 2]\nweights: {a: 1}\n")
    (tmp_path / "lite.yaml").write_text("inner: {lr: 0.1, name: sgd}\n")
    return tmp_path


def test_values_become_dataclasses() -> None:
    raw = {"inner": {"lr": "1e-4"}, "sizes": [3, 4], "span": [1, 2], "weights": {"a": 2}, "limit": None}
    assert build(Outer, raw, "r") == Outer(Inner(1e-4), (3, 4), (1.0, 2.0), {"a": 2.0})


@pytest.mark.parametrize(
    ("raw", "message", "hint"),
    [
        ({"inner": {"lr": 1}, "sises": []}, "r: unknown key 'sises'", "did you mean sizes?"),
        ({"inner": {"rl": 1}}, "r: inner: unknown key 'rl'", "known: lr, name"),
        ({}, "r: inner is missing", None),
        ({"inner": {"lr": "fast"}}, "r: inner: lr: expected a number, got 'fast'", None),
        ({"inner": {"lr": True}}, "r: inner: lr: expected a number, got True", None),
        ({"inner": {"lr": 1, "name": "adan"}}, "r: inner: name: expected one of adam, sgd, got 'adan'", "adam"),
        ({"inner": {"lr": 1}, "sizes": [1.5]}, "r: sizes[0]: expected a whole number, got 1.5", None),
        ({"inner": {"lr": 1}, "span": [1]}, "r: span: expected 2 values, got [1]", None),
        ({"inner": {"lr": 1}, "flag": 1}, "r: flag: expected true or false, got 1", None),
        ({"inner": {"lr": 1}, "limit": "x"}, "r: limit: expected a whole number, got 'x'", None),
        ({"inner": 3}, "r: inner: expected a mapping, got 3", None),
    ],
)
def test_what_is_wrong_is_named(raw: Mapping[str, object], message: str, hint: str | None) -> None:
    with pytest.raises(RecipeError) as caught:
        build(Outer, raw, "r")
    assert str(caught.value) == message
    assert hint is None or hint in (caught.value.hint or "")


def test_a_value_that_the_dataclass_refuses_is_an_error_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match="slices are validation and calibration"):
        build(ImageRecipe, {**RECIPE, "slices": {"validation": 0.1}}, "r")
    with pytest.raises(RecipeError, match="mix: generated, pairs and balance"):
        build(ImageRecipe, {**RECIPE, "mix": {"generated": 1.5}}, "r")


def test_paper_is_the_default_and_changes_are_laid_over_it(folder: Path, tmp_path: Path) -> None:
    assert load(folder) == ("paper", {"inner": {"lr": "1e-4"}, "sizes": [1, 2], "weights": {"a": 1}})
    own = tmp_path / "own.yml"
    own.write_text("base: lite\ninner: {lr: 0.5}\n")
    name, values = load(folder, None, own, ["weights.b=2", "sizes=[9]"])
    assert (name, values) == ("lite", {"inner": {"lr": 0.5, "name": "sgd"}, "weights": {"b": 2}, "sizes": [9]})
    assert load(folder, "paper", own)[0] == "paper"


def test_an_unknown_recipe_and_a_malformed_change_are_errors(folder: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe 'light'") as caught:
        load(folder, "light")
    assert caught.value.hint == "did you mean lite?"
    with pytest.raises(RecipeError, match="'lr' is not key=value"):
        load(folder, None, None, ["lr"])
    (folder / "paper.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(RecipeError, match="a is given twice"):
        load(folder)


def test_operations_are_checked_too() -> None:
    with pytest.raises(RecipeError, match=r"augmentation\[1\]: unknown operation 'bler'") as caught:
        Augmentation.of([{"flip": {}}, {"bler": {"sigma": [0, 1]}}])
    assert caught.value.hint == "did you mean blur?"
    with pytest.raises(RecipeError, match=r"augmentation\[0\]: blur: unknown key 'sigmas'"):
        Augmentation.of([{"blur": {"sigmas": [0, 1]}}])
    with pytest.raises(RecipeError, match="expected one operation"):
        Augmentation.of([{"flip": {}, "d4": {}}])

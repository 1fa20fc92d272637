"""Slices: no photograph on both sides, always the same cut."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector_zoo.errors import DatasetError
from detector_zoo.evaluation.samples import Sample
from detector_zoo.training.splits import components, cut, data_hash, select
from training_toys import toy_set

SHARES = {"validation": 0.2, "calibration": 0.2}


def samples(groups: list[int]) -> list[Sample]:
    """Of each group number a real and a generated image."""
    return [
        Sample(path=Path(f"{i}{label}"), label=label, group=f"g{group}", sha256=f"{label}{i:04d}")  # type: ignore[arg-type]
        for i, group in enumerate(groups)
        for label in ("real", "generated")
    ]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 60), min_size=80, max_size=120), st.randoms(use_true_random=False))
def test_slices_share_no_photograph_and_lose_no_image(groups: list[int], rng: random.Random) -> None:
    given_ = samples([*groups, *range(61)])
    slices = cut(given_, SHARES)
    seen = [{s.group for s in members} for members in slices.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 61
    assert sorted(s.sha256 for m in slices.values() for s in m) == sorted(s.sha256 for s in given_)
    shuffled = cut(rng.sample(given_, len(given_)), SHARES)
    assert {k: {s.sha256 for s in m} for k, m in shuffled.items()} == {
        k: {s.sha256 for s in m} for k, m in slices.items()
    }


def test_shares_are_kept_roughly_and_a_salt_cuts_elsewhere() -> None:
    given_ = samples(list(range(500)))
    slices = cut(given_, SHARES)
    assert 0.15 < len(slices["validation"]) / len(given_) < 0.25
    assert {s.group for s in slices["fit"]} != {s.group for s in cut(given_, SHARES, "other")["fit"]}


def test_an_edit_stays_with_its_original_without_a_group(tmp_path: Path) -> None:
    toys = [replace(s, group="") for s in toy_set(tmp_path, 3).samples]
    made = select(toys)
    found = dict(zip([s.path.name for s in made], components(made), strict=True))
    assert found["0_real.png"] == found["0_made.png"] != found["1_real.png"] == found["1_made.png"]


def test_groups_are_joined_by_way_of_others() -> None:
    chain = [
        Sample(path=Path(str(i)), label="real", group=group, sha256=sha)
        for i, (group, sha) in enumerate([("a", "1"), ("b", "1"), ("b", "2"), ("c", "3"), ("", "2")])
    ]
    names = components(chain)
    assert len({names[i] for i in (0, 1, 2, 4)}) == 1
    assert names[3] != names[0]


def test_a_photograph_keeps_its_place_whatever_is_made_from_it() -> None:
    photos = [Sample(path=Path(f"{i}"), label="real", sha256=f"{i:064x}") for i in range(1, 61)]
    fakes = [Sample(path=Path(f"f{i}"), label="generated", sha256=f"{i + 500:064x}") for i in range(60)]
    # Hashes below and above the photographs' own.
    made = [
        Sample(path=Path(f"m{i}"), label="generated", group=photo.sha256, sha256=f"{(7919 * i) % 2000 + 1000:064x}")
        for i, photo in enumerate(photos)
    ]
    alone, beside = cut([*photos, *fakes], SHARES), cut([*photos, *fakes, *made], SHARES)
    for name, members in alone.items():
        assert {s.sha256 for s in members} <= {s.sha256 for s in beside[name]}


def test_a_slice_without_a_class_is_an_error() -> None:
    with pytest.raises(DatasetError, match=r"slice .* lacks a class"):
        cut(samples([1, 1, 1]), SHARES)


def test_only_the_split_asked_for_is_taken_and_each_file_once(tmp_path: Path) -> None:
    toys = toy_set(tmp_path, 2).samples
    given_ = [replace(toys[0], split="val"), *toys[1:], *toys[1:]]
    assert {s.path for s in select(given_)} == {s.path for s in toys[1:]}
    assert len(select(given_, None)) == 4
    with pytest.raises(DatasetError, match="no image of split 'test', the data have 'train', 'val'"):
        select(given_, "test")
    with pytest.raises(DatasetError, match="all 2 images are real"):
        select([s for s in toys if not s.generated])


def test_the_hash_of_data_is_of_files_and_labels_alone(tmp_path: Path) -> None:
    one, other = toy_set(tmp_path / "a", 2).samples, toy_set(tmp_path / "b", 2).samples
    assert data_hash(select(one)) == data_hash(select(list(reversed(other))))
    assert data_hash(select(one)) != data_hash(select(one[:3]))

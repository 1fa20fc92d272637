import csv
import hashlib
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from detector_zoo.cli import main
from detector_zoo.errors import DatasetError, PluginError, ZooError
from detector_zoo.evaluation import datasets
from detector_zoo.evaluation.copies import NEAR, near
from detector_zoo.evaluation.data_check import check
from detector_zoo.evaluation.entries import LABEL_WORDS, Folders, label_of_word
from detector_zoo.hookspecs import hookimpl
from detector_zoo.plugins import catalogue

from conftest import encoded, photo


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(photo(48, 40, seed)))
    return path


def tree(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        picture(root / name, seed)
    return root


def found(place: object, **options: object) -> dict[str, tuple[str, str, str, str]]:
    return {s.path.name: (s.label, s.generator, s.source, s.split) for s in datasets.read(place, **options)}  # type: ignore[arg-type]


def manifest(root: Path, rows: list[dict[str, object]]) -> Path:
    file = root / "manifest.csv"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, dict.fromkeys(key for row in rows for key in row))
        writer.writeheader()
        writer.writerows(rows)
    return file


# Folders.


def test_forensynths_folders(tmp_path):
    tree(tmp_path, "progan/airplane/0_real/a.png", "progan/airplane/1_fake/b.png", "deepfake/0_real/c.png")
    assert found(tmp_path) == {
        "a.png": ("real", "", "progan", ""),
        "b.png": ("generated", "progan", "progan", ""),
        "c.png": ("real", "", "deepfake", ""),
    }


def test_genimage_folders_and_split(tmp_path):
    tree(tmp_path, "mj/train/nature/a.png", "mj/train/ai/b.png", "mj/val/nature/c.png", "sd/val/ai/d.png")
    assert found(tmp_path, split="val") == {
        "c.png": ("real", "", "mj", "val"),
        "d.png": ("generated", "sd", "sd", "val"),
    }
    with pytest.raises(DatasetError, match="no split 'test'; the set has train, val"):
        datasets.read(tmp_path, split="test")


def test_real_and_fake_with_generators_below(tmp_path):
    tree(tmp_path, "Real/coco/a.png", "Fake/sdxl/b.png", "Fake/c.png")
    assert found(tmp_path) == {
        "a.png": ("real", "", "coco", ""),
        "b.png": ("generated", "sdxl", "sdxl", ""),
        "c.png": ("generated", "", "", ""),
    }


@pytest.mark.parametrize("name", ["unreal/a.png", "fake_leather/a.png", "really/a.png", "0_real_1/a.png", "a_real.png"])
def test_a_part_of_a_name_is_no_label(tmp_path, name):
    tree(tmp_path, "real/x.png", "fake/y.png", name)
    with pytest.raises(DatasetError, match="its label cannot be told: it lies below none of the folders real and fake"):
        datasets.read(tmp_path)
    data = datasets.load(tmp_path, skip_bad=True)
    assert {s.path.name for s in data.samples} == {"x.png", "y.png"}
    assert [bad.name for bad in data.bad] == [name]


def test_names_of_another_pair_are_no_label(tmp_path):
    tree(tmp_path, "real/nature/a.png", "fake/nature/b.png", "real/unreal engine/c.png", "fake/leather real/d.png")
    assert {name: row[0] for name, row in found(tmp_path).items()} == {
        "a.png": "real",
        "b.png": "generated",
        "c.png": "real",
        "d.png": "generated",
    }


def test_folders_above_the_set_are_no_label(tmp_path):
    tree(tmp_path / "fake" / "real", "0_real/a.png", "1_fake/b.png")
    assert [row[0] for row in found(tmp_path / "fake" / "real").values()] == ["real", "generated"]


def test_a_label_in_a_label_cannot_be_told(tmp_path):
    tree(tmp_path, "real/a.png", "fake/b.png", "fake/real/c.png")
    with pytest.raises(DatasetError, match=r"fake/real/c\.png: .*it lies below more than one of the folders"):
        datasets.read(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cats/a.png", "dogs/b.png"), "no folders tell the labels"),
        (("nature/a.png", "city/b.png"), "no folders tell the labels"),
        (("real/nature/a.png", "fake/ai/b.png"), "several pairs of folders may be the labels"),
    ],
)
def test_folders_that_tell_nothing(tmp_path, names, message):
    with pytest.raises(DatasetError, match=message):
        datasets.read(tree(tmp_path, *names))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["real", "fake", "unreal", "nature", "ai", "x", "train", "Real"]), max_size=5))
def test_exactly_one_whole_name_decides(parts):
    entry = Folders([("real",), ("fake",)]).entry("n", parts)
    words = [part.lower() for part in parts if part.lower() in ("real", "fake")]
    assert entry.label == (LABEL_WORDS[words[0]] if len(words) == 1 else None)
    assert bool(entry.problem) == (entry.label is None)


# Manifests.


def test_manifest_carries_every_column(tmp_path):
    tree(tmp_path, "a.png", "b.png", "m.png")
    digest = hashlib.sha256((tmp_path / "b.png").read_bytes()).hexdigest()
    edit = {"generator": "sd", "source": "s", "split": "val", "kind": "inpaint", "group": "g", "sha256": digest.upper()}
    rows = [
        {"path": "a.png", "label": "real", "licence": "CC0"},
        {"path": "b.png", "label": "Generated", "mask": "m.png", "original": "a.png", **edit},
    ]
    manifest(tmp_path, rows)
    real, fake = datasets.read(tmp_path)
    assert (real.label, real.generator, real.mask) == ("real", "", None)
    assert (fake.label, fake.generator, fake.source, fake.split) == ("generated", "sd", "s", "val")
    assert (fake.kind, fake.group, fake.sha256) == ("inpaint", "g", digest)
    assert (fake.mask, fake.original) == (tmp_path / "m.png", tmp_path / "a.png")


def test_parquet_manifest(tmp_path):
    tree(tmp_path, "a.png", "b.png")
    table = pa.table({"path": ["a.png", "b.png"], "label": ["real", "fake"], "generator": [None, "sd"]})
    pq.write_table(table, tmp_path / "set.parquet")
    assert found(tmp_path / "set.parquet") == {"a.png": ("real", "", "", ""), "b.png": ("generated", "sd", "", "")}


@pytest.mark.parametrize("label", ["1", "0", "unreal", "", "true", "fakes"])
def test_labels_that_are_no_words_are_refused(tmp_path, label):
    tree(tmp_path, "a.png", "b.png")
    manifest(tmp_path, [{"path": "a.png", "label": "real"}, {"path": "b.png", "label": label}])
    with pytest.raises(DatasetError, match=r"b\.png: its label cannot be told"):
        datasets.read(tmp_path)
    assert label_of_word(label) is None


@pytest.mark.parametrize("path", ["../outside.png", "sub/../../outside.png", "ABSOLUTE", "link.png"])
def test_a_manifest_does_not_lead_out_of_its_folder(tmp_path, path):
    outside = picture(tmp_path / "outside.png", 7)
    root = tree(tmp_path / "set", "a.png")
    (root / "link.png").symlink_to(outside)
    manifest(
        root, [{"path": "a.png", "label": "real"}, {"path": path.replace("ABSOLUTE", str(outside)), "label": "fake"}]
    )
    with pytest.raises(DatasetError, match="leaves the manifest's folder"):
        datasets.read(root)
    allowed = datasets.read(root, absolute_paths=True)
    assert hashlib.sha256(outside.read_bytes()).hexdigest() == allowed[1].sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,what\na.png,real\n", "no label"),
        ("path,label\na.png,real,x\n", "line 2 is not as wide"),
        ("path,label\n,real\n", "manifest.csv row 2: the row has no path"),
        ("path,label\nmissing.png,real\n", "no such file"),
        ("path,label\n\0,real\n", "path"),
        ("path,label,sha256\na.png,real,00\n", "not the file that its manifest describes"),
        ("path,label,mask\na.png,real,none.png\n", "none.png: no such file"),
    ],
)
def test_bad_manifests(tmp_path, text, message):
    tree(tmp_path, "a.png")
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        datasets.read(tmp_path)


def test_other_splits_are_not_read_where_their_hashes_are_known(tmp_path):
    tree(tmp_path, "a.png", "b.png")
    rows = [{"path": name, "label": "real", "split": "val", "sha256": ""} for name in ("a.png", "b.png")]
    gone = {"path": "gone.png", "label": "fake", "split": "train", "sha256": "0" * 64}
    manifest(tmp_path, [*rows, gone])
    assert len(datasets.read(tmp_path, split="val")) == 2
    with pytest.raises(DatasetError, match=r"gone\.png"):
        datasets.read(tmp_path)


# What makes a set unusable.


def test_one_content_in_two_splits(tmp_path):
    tree(tmp_path, "train/real/a.png", "train/fake/b.png", "val/real/c.png", "val/fake/d.png")
    shutil.copy(tmp_path / "train/real/a.png", tmp_path / "val/real/copy.png")
    with pytest.raises(DatasetError, match=r"is in two splits \(train: a\.png, val: copy\.png\)"):
        datasets.read(tmp_path, split="val")
    assert set(found(tmp_path, split="val", skip_bad=True)) == {"c.png", "d.png"}


def test_one_content_under_two_labels(tmp_path):
    tree(tmp_path, "real/a.png", "fake/b.png", "real/c.png")
    shutil.copy(tmp_path / "real/a.png", tmp_path / "fake/a2.png")
    with pytest.raises(DatasetError, match=r"comes under two labels .* \(and 1 more\)"):
        datasets.read(tmp_path)
    assert set(found(tmp_path, skip_bad=True)) == {"b.png", "c.png"}


def test_unreadable_files(tmp_path):
    tree(tmp_path, "real/a.png", "fake/b.png")
    (tmp_path / "real/text.png").write_text("not a picture")
    (tmp_path / "fake/empty.png").touch()
    with pytest.raises(DatasetError, match=r"empty\.png: .*the file is empty \(and 1 more\)"):
        datasets.read(tmp_path)
    data = datasets.load(tmp_path, skip_bad=True)
    assert {Path(bad.name).name for bad in data.bad} == {"empty.png", "text.png"}


@pytest.mark.parametrize(("place", "message"), [("nowhere", "no such file or folder"), ("x.txt", "no data set")])
def test_places_that_are_none(tmp_path, monkeypatch, place, message):
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("x")
    with pytest.raises(DatasetError, match=message):
        datasets.read(place)


def test_hash_of_a_set_is_of_its_contents(tmp_path):
    one = datasets.load(tree(tmp_path / "one", "real/a.png", "fake/b.png"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two/real/a.png").rename(tmp_path / "two/real/z.png")
    assert datasets.load(tmp_path / "two").sha256 == one.sha256
    picture(tmp_path / "two/real/more.png", 9)
    assert datasets.load(tmp_path / "two").sha256 != one.sha256


# Triples.


def test_triples(tmp_path):
    tree(tmp_path, "original/x/1.png", "inpainted/x/1.png", "mask/x/1.png")
    real, fake = datasets.read(tmp_path)
    assert (real.label, fake.label, fake.kind) == ("real", "generated", "inpaint")
    assert real.group == fake.group == "x/1"
    assert (fake.original, fake.mask) == (real.path, tmp_path / "mask/x/1.png")


def test_incomplete_triple(tmp_path):
    tree(tmp_path, "original/1.png", "inpainted/1.png", "masks/1.png", "original/2.png")
    with pytest.raises(DatasetError, match="2: a triple has one file of each role; it is there 0 times as edited"):
        datasets.read(tmp_path)
    assert len(datasets.read(tmp_path, skip_bad=True)) == 2


# WebDataset.


def shard(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(data))
        if kind != tarfile.REGTYPE:
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    return path


def test_webdataset_labels(tmp_path):
    a, b, c = (encoded(photo(48, 40, seed)) for seed in range(3))
    facts = json.dumps({"label": "fake", "generator": "sd", "split": "val"}).encode()
    shard(tmp_path / "0.tar", {"s/0.png": a, "s/0.cls": b"real\n", "s/1.png": b, "s/1.json": facts})
    shard(tmp_path / "1.tar", {"s/2.png": c, "s/2.txt": b"real"})
    rows = datasets.read(tmp_path)
    assert [(s.label, s.generator, s.split) for s in rows] == [
        ("real", "", ""),
        ("generated", "sd", "val"),
        ("real", "", ""),
    ]
    assert rows[0].path.read_bytes() == a


def test_webdataset_folders_and_hostile_members(tmp_path, own_home):
    a, b = (encoded(photo(48, 40, seed)) for seed in range(2))
    members = {"../../evil/real/0.png": a, "/abs/fake/1.png": b}
    shard(tmp_path / "x.tar", members, kind=tarfile.SYMTYPE)
    before = set(tmp_path.rglob("*"))
    rows = datasets.read(tmp_path / "x.tar")
    assert [s.label for s in rows] == ["real", "generated"]
    assert all(s.path.resolve().is_relative_to(own_home.resolve()) for s in rows)
    assert set(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent.parent / "evil").exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.png": b"PICTURE", "0.cls": b"1"}, "label cannot be told from"),
        ({"0.png": b"PICTURE", "0.cls": b"real", "0.json": b'{"label": "fake"}'}, "label cannot be told from"),
        ({"0.png": b"PICTURE", "0.json": b"{"}, "its label cannot be read"),
        ({"0.png": b"PICTURE"}, "it has no label"),
        ({"0.cls": b"real"}, "a sample has one image, this one has 0"),
        ({"0.png": b"nothing", "0.cls": b"real"}, "not an image"),
    ],
)
def test_bad_webdataset_samples(tmp_path, members, message):
    members = {name: encoded(photo(48, 40, 1)) if data == b"PICTURE" else data for name, data in members.items()}
    with pytest.raises(DatasetError, match=message):
        datasets.read(shard(tmp_path / "0.tar", members))


def test_damaged_shard(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"x" * 1000)
    with pytest.raises(DatasetError, match="cannot be read as a tar file"):
        datasets.read(tmp_path / "0.tar")


# Hugging Face.


def test_parquet_with_images(tmp_path):
    import datasets as hf

    features = hf.Features(
        {"image": hf.Image(), "label": hf.ClassLabel(names=["fake", "real"]), "generator": hf.Value("string")}
    )
    images = [{"bytes": encoded(photo(48, 40, seed)), "path": f"{seed}.png"} for seed in range(2)]
    rows = {"image": images, "label": [0, 1], "generator": ["sd", ""]}
    hf.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "set.parquet"))
    fake, real = datasets.read(tmp_path / "set.parquet")
    assert (fake.label, fake.generator, real.label, real.split) == ("generated", "sd", "real", "train")
    assert fake.path.read_bytes() == images[0]["bytes"]
    assert fake.path.suffix == ".png"


def test_imagefolder(tmp_path):
    tree(tmp_path, "train/real/a.png", "train/ai/b.png", "test/real/c.png", "test/ai/d.png")
    rows = found(f"hf:{tmp_path}", split="test")
    assert rows == {"c.png": ("real", "", "", "test"), "d.png": ("generated", "", "", "test")}


def test_class_numbers_without_names_are_no_labels(tmp_path):
    import datasets as hf

    images = [{"bytes": encoded(photo(48, 40, seed)), "path": None} for seed in range(2)]
    features = hf.Features({"image": hf.Image(), "label": hf.Value("int64")})
    table = hf.Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
    table.to_parquet(str(tmp_path / "set.parquet"))
    with pytest.raises(DatasetError, match="label cannot be told from 0"):
        datasets.read(tmp_path / "set.parquet")


def test_hint_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ZooError, match="need the library datasets") as caught:
        datasets.read("hf:owner/name")
    assert caught.value.hint == "pip install 'detector-zoo[hf]'"


# Adapters of plugins.


class Adapter:
    """Of a stranger: a file that ends in .mine names one image of each class."""

    def accepts(self, place):
        return place.endswith(".mine")

    def entries(self, place, *, absolute_paths):
        from detector_zoo.evaluation.entries import Entry

        for seed, label in enumerate(("real", "generated")):
            yield Entry(name=f"{seed}.png", content=encoded(photo(48, 40, seed)), label=label)


def registering(name: str, target: str):
    from types import ModuleType

    module = ModuleType("fake")

    @hookimpl
    def register_datasets(register):
        register(name, target)

    module.register_datasets = register_datasets
    return module


def test_a_plugin_registers_an_adapter(tmp_path, fake_plugins):
    fake_plugins.add("mine", registering("mine", f"{__name__}:Adapter"))
    (tmp_path / "x.mine").touch()
    assert [s.label for s in datasets.read(tmp_path / "x.mine")] == ["real", "generated"]
    assert [s.label for s in datasets.read("mine:anything")] == ["real", "generated"]


def test_a_plugin_cannot_take_a_name_of_ours(tmp_path, fake_plugins):
    fake_plugins.add("thief", registering("folders", f"{__name__}:Adapter"))
    found = datasets.read(tree(tmp_path, "real/a.png", "fake/b.png"))
    assert sorted(sample.label for sample in found) == ["generated", "real"]
    assert "'folders' of zoo-fake is taken" in catalogue().broken()[0].status


def test_broken_adapter(tmp_path, fake_plugins):
    fake_plugins.add("broken", registering("broken", "no_such_module:Adapter"))
    with pytest.raises(PluginError, match="data-set adapter broken: cannot load"):
        datasets.read("broken:x")


# zoo data check.


def run(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_check_of_a_clean_set(tmp_path):
    tree(tmp_path, "train/real/a.png", "train/fake/b.png", "val/real/c.png", "val/fake/d.png")
    result = run("data", "check", tmp_path)
    assert result.exit_code == 0, result.output
    assert "same file: none" in result.output
    assert json.loads(run("data", "check", tmp_path, "--format", "json").stdout)["leaks"] == 0


def test_check_counts(tmp_path):
    tree(tmp_path, "real/a.png", "real/b.png", "fake/sd/c.png")
    photo(80, 60, 9).save(tmp_path / "fake/d.jpg")
    found = check(datasets.collect(tmp_path))
    assert found.images == {("generated", ""): 2, ("real", ""): 2}
    assert found.formats == {"generated": {"PNG": 1, "JPEG": 1}, "real": {"PNG": 2}}
    assert found.sizes["generated"] == (40, 45, 50, 55, 60)
    assert found.same_size["real"] == ("48x40", 1.0)
    assert found.generators == {"sd": 1, "": 1}


def test_check_finds_leaks(tmp_path):
    tree(tmp_path, "train/real/a.png", "train/fake/b.png", "val/real/c.png", "val/fake/d.png")
    shutil.copy(tmp_path / "train/real/a.png", tmp_path / "val/real/copy.png")
    photo(48, 40, 1).save(tmp_path / "val/fake/again.jpg", quality=95)
    result = run("data", "check", tmp_path, "--format", "json")
    assert result.exit_code == 1
    pairs = {(pair["kind"], pair["across"]): pair["leak"] for pair in json.loads(result.stdout)["pairs"]}
    assert pairs == {("content", "splits"): True, ("picture", "splits"): True}


def test_check_tells_aligned_pairs_from_leaks(tmp_path):
    tree(tmp_path, "real/a.png", "fake/b.png")
    photo(48, 40, 0).save(tmp_path / "fake/reconstruction.jpg", quality=90)
    found = check(datasets.collect(tmp_path))
    assert [(pair.kind, pair.across, pair.leak) for pair in found.pairs] == [("picture", "classes", False)]
    shutil.copy(tmp_path / "real/a.png", tmp_path / "fake/a.png")
    assert [pair.kind for pair in check(datasets.collect(tmp_path)).leaks] == ["content"]


def test_check_finds_groups_that_a_split_cuts(tmp_path):
    tree(tmp_path, "a.png", "b.png")
    rows = [{"path": "a.png", "label": "real", "split": "train", "group": "1"}]
    manifest(tmp_path, [*rows, {"path": "b.png", "label": "fake", "split": "val", "group": "1"}])
    leaks = check(datasets.collect(tmp_path)).leaks
    assert [(pair.kind, pair.across) for pair in leaks] == [("group", "classes and splits")]


def test_check_lists_what_cannot_be_used(tmp_path):
    tree(tmp_path, "real/a.png", "fake/b.png", "elsewhere/c.png")
    damaged = (tmp_path / "real/a.png").read_bytes()
    (tmp_path / "real/cut.png").write_bytes(damaged[: len(damaged) // 2])
    result = run("data", "check", tmp_path)
    assert result.exit_code == 1
    assert "elsewhere/c.png: its label cannot be told" in result.output
    assert "cut.png" in result.output


def test_near_finds_every_close_pair():
    import numpy as np

    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64)
    for i in range(100):
        flips = rng.choice(64, rng.integers(0, 8), replace=False)
        hashes[100 + i] = hashes[i] ^ np.uint64(sum(1 << int(f) for f in flips))
    slow = [
        (i, j) for i in range(300) for j in range(i + 1, 300) if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= NEAR
    ]
    assert near(hashes) == slow
    assert len(slow) > 40


def test_hint_without_imagehash(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ZooError, match="imagehash") as caught:
        check(datasets.collect(tree(tmp_path, "real/a.png", "fake/b.png")))
    assert caught.value.hint == "pip install 'detector-zoo[eval]'"

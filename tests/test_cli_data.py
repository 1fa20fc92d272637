import csv
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from detector_zoo.cli import data, main
from detector_zoo.training.autoencoder import TinyAutoencoder

from conftest import photo


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def photos(tmp_path):
    """A manifest of three photographs, two of them of the split train."""
    folder = tmp_path / "set"
    folder.mkdir()
    with (folder / "manifest.csv").open("w") as file:
        file.write("path,label,split,source\n")
        for i, split in enumerate(("train", "train", "val")):
            photo(80, 72, seed=i).save(folder / f"{i}.png")
            file.write(f"{i}.png,real,{split},here\n")
    return folder


@pytest.fixture
def tiny(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    model = TinyAutoencoder(latent=4, pooled=False)
    for part in ("encoder", "decoder"):
        torch.save(getattr(model, part).state_dict(), folder / f"small_{part}.pth")
    return folder


def zoo(*arguments):
    result = CliRunner().invoke(main, ["data", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_subcommand_is_there_and_is_not_loaded_by_the_group():
    listed = zoo("--help").output
    for name in data.SUBCOMMANDS:
        assert f"\n  {name} " in listed
        assert zoo(name, "--help").exit_code == 0
    assert zoo("nothing").exit_code == 2


def test_reconstruct_tells_what_it_did_and_goes_on(photos, tiny, tmp_path):
    arguments = ("reconstruct", "--autoencoder", tiny, "--data", photos, "--out", tmp_path / "out", "--size", 64)
    first = zoo(*arguments, "--split", "train", "--limit", 1, "--crops", 2, "--device", "cpu")
    assert (first.exit_code, first.stdout) == (0, f"{tmp_path / 'out' / 'manifest.csv'}\n")
    assert first.stderr == "2 made, 0 kept; 4 rows\n"
    assert zoo(*arguments).stderr == "2 made, 1 kept; 6 rows\n"
    assert [r["split"] for r in rows(tmp_path / "out/manifest.csv")].count("val") == 2
    other = zoo(*arguments[:-1], 72)
    assert other.exit_code == 1
    assert other.stderr.startswith(f"Error: {tmp_path / 'out'}: was made with size 64, this run has 72\nHint: ")


def test_an_inpainter_is_trained_and_edits_are_made_with_it(photos, tiny, tmp_path):
    net = tmp_path / "net.safetensors"
    trained = zoo(
        "train-inpainter", "--data", photos, "--out", net, "--steps", 2, "--batch", 1, "--size", 64, "--device", "cpu"
    )
    assert (trained.exit_code, trained.stdout) == (0, f"{net}\n")
    assert trained.stderr.startswith("2 photographs, ")
    made = zoo(
        *("edit", "--kind", "latent", "--kind", "inpaint", "--kind", "splice", "--autoencoder", tiny),
        *("--inpainter", net, "--data", photos, "--split", "train", "--out", tmp_path / "out", "--size", 64),
        *("--area", 0.1, 0.2, "--feathered", 1, "--device", "cpu"),
    )
    assert made.stderr == "2 made, 0 kept; 12 rows\n"
    recipe = json.loads((tmp_path / "out/recipe.json").read_text())
    assert recipe["kinds"] == ["edit-latent", "edit-inpaint", "splice"]
    found = rows(tmp_path / "out/manifest.csv")
    for row in found:
        if row["mask"]:
            assert row["note"].endswith("feather=5")
            with Image.open(tmp_path / "out" / row["mask"]) as mask:
                assert 0.09 < (np.asarray(mask) > 0).mean() < 0.21
    # Edits whose seams are to be hard can be exchanged anew from what was written.
    again = zoo("exchange", "--triples", tmp_path / "out", "--out", tmp_path / "hard")
    assert again.stderr == "4 made, 0 kept; 12 rows\n"
    assert {r["group"] for r in rows(tmp_path / "hard/manifest.csv")} == {r["group"] for r in found}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "latent edits need --autoencoder"),
        (("--kind", "inpaint"), "inpainting needs --inpainter"),
        (("--kind", "splice", "--area", 0.4, 0.2), "--area: the second number must be larger"),
    ],
)
def test_an_edit_that_lacks_its_means_is_misuse(photos, tmp_path, arguments, message):
    result = zoo("edit", "--data", photos, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_exchange_names_a_bad_triple_or_leaves_it_out(tmp_path):
    for part, seed in (("original", 0), ("inpainted", 1), ("mask", 2)):
        (tmp_path / "set" / part).mkdir(parents=True)
        for stem in ("good", "grey"):
            picture = photo(40, 32, seed=seed + 3 * (stem == "grey"))
            if part == "mask":
                picture = picture.convert("L")
                if stem == "good":
                    picture = picture.point(lambda v: 255 * (v > 128))
            picture.save(tmp_path / f"set/{part}/{stem}.png")
    failed = zoo("exchange", "--triples", tmp_path / "set", "--out", tmp_path / "out")
    assert failed.exit_code == 1
    assert failed.stderr.startswith(f"Error: {tmp_path}/set/mask/grey.png: not a binary mask")
    result = zoo("exchange", "--triples", tmp_path / "set", "--out", tmp_path / "out", "--skip-bad")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[1].endswith("1 left out; 3 rows")


def test_an_interrupt_is_one_line_and_status_130(photos, tiny, tmp_path, monkeypatch):
    def interrupted(label):
        def track(work):
            yield work[0]
            raise KeyboardInterrupt

        return track

    monkeypatch.setattr(data, "progress", interrupted)
    arguments = ("reconstruct", "--autoencoder", tiny, "--data", photos, "--out", tmp_path / "out", "--size", 64)
    result = zoo(*arguments)
    assert result.exit_code == 130
    assert result.stderr == (
        f"Interrupted; what is made is kept, run the same command to go on with {tmp_path / 'out'}\n"
    )
    monkeypatch.undo()
    assert zoo(*arguments).stderr == "2 made, 1 kept; 6 rows\n"


def test_a_set_without_the_training_split_is_told(photos, tmp_path):
    (photos / "manifest.csv").write_text("path,label,split\n0.png,real,val\n")
    result = zoo("train-inpainter", "--data", photos, "--out", tmp_path / "net")
    assert (result.exit_code, result.stderr) == (
        1,
        f"Error: {photos}: no split train\nHint: name one by --split\n",
    )
    assert zoo("train-inpainter", "--data", photos, "--out", tmp_path / "net", "--size", 70).exit_code == 2

"""`-d hf:org/model`: image classifiers of transformers, served by a loopback Hub; labels, batches, hostile models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from detector_zoo import hub_labels, hub_refs, load
from detector_zoo.errors import UnknownDetectorError, ZooError
from detector_zoo.hub_models import HubClassifier
from hub_toys import zoo
from test_weights import go_offline

from conftest import photo
from hub_server import HubServer

MODEL = "bob/ai-or-not"
LABELS = {0: "human", 1: "artificial", 2: "Deepfake"}


def tiny_vit(labels: dict[int, str] | None = None, **changes: Any) -> dict[str, bytes]:
    """The files of a ViT of 2 layers, as transformers saves it."""
    torch.manual_seed(3)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8,
        id2label=labels or LABELS, label2id={name: i for i, name in (labels or LABELS).items()}, **changes,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    raw = json.loads(config.to_json_string(use_diff=False)) | {"architectures": ["ViTForImageClassification"]}
    raw |= {"id2label": {str(i): name for i, name in (labels or LABELS).items()}}
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    return {
        "config.json": json.dumps(raw).encode(),
        "preprocessor_config.json": processor.to_json_string().encode(),
        "model.safetensors": save(model.state_dict(), {"format": "pt"}),
    }


@pytest.fixture(scope="module")
def vit() -> dict[str, bytes]:
    torch.set_num_threads(1)
    return tiny_vit()


@pytest.fixture
def commit(hub: HubServer, vit: dict[str, bytes]) -> str:
    return hub.commit(MODEL, vit)


def but(files: dict[str, bytes], name: str = "config.json", **changes: Any) -> dict[str, bytes]:
    return files | {name: json.dumps(json.loads(files[name]) | changes).encode()}


def failure(name: str = f"hf:{MODEL}") -> ZooError:
    hub_refs.forget()
    with pytest.raises(ZooError) as caught:
        load(name, device="cpu")
    assert "\n" not in str(caught.value)
    return caught.value


def test_it_scores_as_transformers_does(
    hub: HubServer, vit: dict[str, bytes], commit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in vit.items():
        (folder / name).write_bytes(data)
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    capsys.readouterr()
    images = [photo(60, 40, seed=seed) for seed in range(3)]
    with torch.no_grad():
        p = model(**processor(images, return_tensors="pt")).logits.double().softmax(1)
    expected = torch.log(p[:, 1] + p[:, 2]) - torch.log(p[:, 0])
    loaded = load(f"hf:{MODEL}", device="cpu")
    assert loaded.score(images) == pytest.approx(expected.numpy(), abs=1e-5)
    assert expected.abs().max() > 0.1
    assert capsys.readouterr().err == f"hf:{MODEL}: labels taken as generated=artificial,Deepfake;real=human\n"
    assert loaded.name == f"hf.{MODEL}@{commit}#generated=artificial,Deepfake;real=human"
    assert not loaded.judge(1.0).calibrated
    evidence = loaded.evidence(images[0])
    assert set(evidence) == {"real: human", "generated: artificial", "generated: Deepfake"}
    assert sum(np.exp(list(evidence.values()))) == pytest.approx(1, abs=1e-5)
    assert evidence["real: human"] == pytest.approx(float(p[0, 0].log()), abs=1e-5)


def test_an_image_scores_alike_in_any_batch(hub: HubServer, commit: str) -> None:
    loaded = load(f"hf:{MODEL}", device="cpu")
    images = [photo(40 + seed, 50, seed=seed) for seed in range(5)]
    alone = np.concatenate([loaded.score([image]) for image in images])
    assert loaded.score(images) == pytest.approx(alone, abs=1e-5)
    assert loaded.score(images[::-1])[::-1] == pytest.approx(alone, abs=1e-5)


def test_on_the_command_line(hub: HubServer, commit: str, tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    name = f"hf:{MODEL}#generated=artificial;real=human"
    first = zoo("score", "-d", name, tmp_path / "photo.png", "--device", "cpu", "--format", "json")
    assert first.exit_code == 0, first.output
    row = json.loads(first.stdout)
    assert (row["detector"], row["calibrated"]) == ("hf", False)
    assert row["weights"] == f"{MODEL}@{commit}#generated=artificial;real=human"
    assert "labels taken as" not in first.stderr
    # The name in the row is one that can be asked for again, and other labels are another detector.
    assert load(f"hf.{row['weights']}", device="cpu").tag == row["weights"]
    both = zoo("score", "-d", f"hf:{MODEL}", tmp_path / "photo.png", "--device", "cpu", "-o", tmp_path / "out.jsonl")
    assert both.exit_code == 0
    again = zoo("score", "-d", name, tmp_path / "photo.png", "--device", "cpu", "-o", tmp_path / "out.jsonl")
    assert again.exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len({round(r["log_odds"], 6) for r in rows}) == 2
    info = zoo("info", f"hf:{MODEL}")
    assert "launders" in info.stdout
    assert "not verified by this project" in info.stdout


def test_locked(hub: HubServer, vit: dict[str, bytes], commit: str, tmp_path: Path) -> None:
    assert zoo("lock", f"hf:{MODEL}").exit_code == 0
    entry = json.loads(Path("zoo.lock").read_text())["weights"][f"hf:{MODEL}"]
    assert set(entry["files"]) == set(vit)
    hub.commit(MODEL, but(vit, problem_type=None, layer_norm_eps=0.1))
    hub_refs.forget()
    assert commit in load(f"hf:{MODEL}#generated=1;real=0", device="cpu").name
    entry["files"]["config.json"]["sha256"] = "0" * 64
    Path("zoo.lock").write_text(json.dumps({"schema_version": 1, "weights": {f"hf:{MODEL}": entry}}))
    assert "the lock file has" in str(failure())


def test_cached_and_offline(hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(f"hf:{MODEL}", device="cpu").score([photo()])
    hub_refs.forget()
    go_offline(monkeypatch)
    before = len(hub.requests)
    assert load(f"hf:{MODEL}", device="cpu").score([photo()]) == expected
    assert len(hub.requests) == before


def test_half_precision_is_computed_in_full(hub: HubServer, vit: dict[str, bytes], commit: str) -> None:
    from safetensors.torch import load as read

    expected = load(f"hf:{MODEL}", device="cpu").score([photo()])
    halves = save({key: value.half() for key, value in read(vit["model.safetensors"]).items()})
    hub.commit("bob/half", but(vit, dtype="float16", torch_dtype="float16") | {"model.safetensors": halves})
    loaded = load("hf:bob/half", device="cpu")
    assert next(loaded.detector.network.parameters()).dtype is torch.float32  # type: ignore[attr-defined]
    assert loaded.score([photo()]) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_map": {"AutoConfig": "evil.Config"}}, "auto_map asks for code"),
        ({"nested": {"auto_map": {"x": "y"}}}, "auto_map asks for code"),
        ({"quantization_config": {"quant_method": "x"}}, "quantization_config asks for"),
        ({"use_pretrained_backbone": True}, "use_pretrained_backbone asks for"),
        ({"transformers_weights": "../../w.bin"}, "transformers_weights asks for"),
        ({"model_type": None}, "names no model_type"),
        ({"model_type": "evil"}, "no image classifier 'evil'"),
        ({"model_type": "timm_wrapper"}, "no image classifier 'timm_wrapper'"),
        ({"model_type": "gpt2"}, "no image classifier 'gpt2'"),
        ({"problem_type": "multi_label_classification"}, "exclude each other"),
        ({"hidden_size": 10**9}, "number larger than"),
        ({"num_hidden_layers": 100_000}, "number larger than"),
        ({"hidden_size": 1024, "intermediate_size": 100_000}, "parameters, model.safetensors holds"),
        ({"num_hidden_layers": 3}, "is missing"),
        ({"patch_size": 4}, "has another shape"),
        ({"hidden_size": "x"}, "config.json"),
        ({"id2label": {"0": "a"}}, "fewer than two labels"),
        ({"id2label": {"0": "a", "2": "b"}}, "does not number the labels"),
        ({"id2label": {"x": "a"}}, "does not number the labels"),
        ({"id2label": {"0": "real", "1": "Real"}}, "two labels of one name"),
        ({"id2label": {"0": "real", "1": "fake"}}, "has another shape"),
    ],
)
def test_configurations_that_are_not_followed(
    hub: HubServer, vit: dict[str, bytes], changes: dict[str, Any], words: str
) -> None:
    hub.commit(MODEL, but(vit, **changes) | {"evil.py": b"raise SystemExit('ran')"})
    error = failure()
    assert words in str(error)
    assert not any(request.path.endswith(".py") for request in hub.requests)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_files_that_are_no_configuration(hub: HubServer, vit: dict[str, bytes], name: str) -> None:
    for data, words in (
        (b"[]", "expected an object"),
        (b"{", name),
        (b"[" * 90_000, name),
        (b'{"a": ' + b"9" * 5000 + b"}", name),
        (b" " * 3_000_000, "are read"),
        (b'{"auto_map": {"AutoImageProcessor": "evil.P"}}', "auto_map asks for code"),
    ):
        hub.commit(MODEL, vit | {name: data})
        assert words in str(failure())
    hub.commit("bob/other", {key: value for key, value in vit.items() if key != name})
    assert f"no file {name}" in str(failure("hf:bob/other"))


def test_a_processor_of_nobody(hub: HubServer, vit: dict[str, bytes]) -> None:
    hub.commit(MODEL, vit | {"preprocessor_config.json": b'{"image_processor_type": "EvilProcessor"}'})
    assert "preprocessor_config.json" in str(failure()) or "processor" in str(failure())


def test_only_pickles(hub: HubServer, vit: dict[str, bytes]) -> None:
    files = {"config.json": vit["config.json"], "preprocessor_config.json": vit["preprocessor_config.json"]}
    hub.commit(MODEL, files | {"pytorch_model.bin": b"\x80\x04."})
    error = failure()
    assert "no file model.safetensors" in str(error)
    assert "safetensors" in str(error.hint)
    hub.commit(MODEL, {"model.safetensors": b"\x80\x04."})
    assert "not safetensors" in str(failure())


def test_without_transformers(hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    error = failure()
    assert "transformers is not installed" in str(error)
    assert error.hint == "pip install 'detector-zoo[hf]'"


@pytest.mark.parametrize(
    ("labels", "generated", "real"),
    [
        (["artificial", "human"], (0,), (1,)),
        (["REAL", "FAKE"], (1,), (0,)),
        (["ai", "hum"], (0,), (1,)),
        (["AI-generated image", "Real Photo"], (0,), (1,)),
        (["AIGenerated", "realImage"], (0,), (1,)),
        (["stable_diffusion", "gan", "nature"], (0, 1), (2,)),
    ],
)
def test_labels_that_speak_for_themselves(labels: list[str], generated: tuple[int], real: tuple[int]) -> None:
    found = hub_labels.infer(dict(enumerate(labels)), "x")
    assert (found.generated, found.real, found.inferred) == (generated, real, True)


@pytest.mark.parametrize(
    "labels",
    [
        ["LABEL_0", "LABEL_1"], ["fake", "other"], ["real", "not real"], ["fake", "synthetic"], ["human", "photo"],
        ["fake", "real fake"], ["Realism", "Deepfake"], ["cat", "dog"],
    ],
)  # fmt: skip
def test_labels_that_do_not(labels: list[str]) -> None:
    with pytest.raises(UnknownDetectorError) as caught:
        hub_labels.infer(dict(enumerate(labels)), "hf:a/b")
    for index, label in enumerate(labels):
        assert f"{index}: {label!r}" in str(caught.value)
    assert "#generated=LABEL" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("generated=x;real=human", "no label 'x'"),
        ("generated=1", "both kinds"),
        ("generated=1;real=1", "named twice"),
        ("generated=artificial;real=1", "named twice"),
        ("fake=1;real=0", "not of the form"),
        ("generated=;real=0", "not of the form"),
        ("generated=1;generated=2", "not of the form"),
        ("x", "not of the form"),
    ],
)
def test_labels_given_wrongly(text: str, words: str) -> None:
    with pytest.raises(UnknownDetectorError, match=words) as caught:
        hub_labels.given(text, LABELS, "hf:a/b")
    assert caught.value.exit_code == 2


@settings(max_examples=40, deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=9).map(str.strip).filter(bool), min_size=2, max_size=6))
def test_what_is_written_is_read(names: list[str]) -> None:
    labels = {i: name for i, name in enumerate(dict.fromkeys(names)) if not name.isdigit()}
    folded = {name.casefold() for name in labels.values()}
    if len(labels) < 2 or len(folded) < len(labels):
        return
    ids = list(labels)
    made = hub_labels.Labels(tuple(ids[:1]), tuple(ids[1:]))
    assert hub_labels.given(made.canonical(labels), labels, "x") == made


def test_images_of_any_kind(hub: HubServer, commit: str) -> None:
    loaded = load(f"hf:{MODEL}", device="cpu")
    odd = [Image.new("RGB", (1, 1), "red"), Image.new("RGB", (3, 500)), photo(200, 7)]
    assert np.isfinite(loaded.score(odd)).all()


@pytest.mark.parametrize("size", [(50, 3), (3, 50), (50, 1), (3, 3)])
def test_rows_are_not_taken_for_channels(hub: HubServer, commit: str, size: tuple[int, int]) -> None:
    detector = load(f"hf:{MODEL}", device="cpu").detector
    assert isinstance(detector, HubClassifier)
    picture = photo(*size)
    side = detector.transform(picture).shape[-1]
    expected = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1)
    assert np.abs(detector.transform(picture).numpy() - (expected / 127.5 - 1)).max() < 0.02


def test_a_blob_that_is_itself_a_link(
    hub: HubServer, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As newer versions keep what came by Xet: under a hash of another kind, shared between repositories."""
    name = f"hf:{MODEL}"
    expected = load(name, device="cpu").score([photo()])
    (weights,) = Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/model.safetensors")
    blob = weights.parent / weights.readlink()
    shared = tmp_path / "shared" / ("ab" * 32)
    shared.parent.mkdir()
    blob.rename(shared)
    blob.symlink_to(shared)
    go_offline(monkeypatch)
    assert load(name, device="cpu").score([photo()]) == expected
    shared.write_bytes(shared.read_bytes()[:-1] + b"!")
    hub_refs.forget()
    assert "sha256" in str(failure(name))


def test_a_file_that_is_too_large(hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector_zoo.download.LARGEST", 1000)
    assert "at most 1000 are fetched" in str(failure())

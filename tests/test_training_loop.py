"""The loop: it learns, goes on to the bit where it was killed, and stops where it should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from detector_zoo.errors import WeightsError, ZooError
from detector_zoo.training import checkpoints, loop
from detector_zoo.training.batches import Batch
from detector_zoo.training.checkpoints import Metrics, Progress
from detector_zoo.training.display import shown
from detector_zoo.training.job import Job
from detector_zoo.training.loop import Optimiser, Outcome, Schedule, Trainee, train
from training_toys import RECIPE, Toy, ToyHead, ToySet, toy_set

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ToySet:
    torch.set_num_threads(1)
    return toy_set(tmp_path_factory.mktemp("toys"))


def job(out: Path, **changes: Any) -> Job:
    out.mkdir(parents=True, exist_ok=True)
    plain = Job(name="toy.a", samples=(), recipe="lite", values={}, out=out, device="cpu", quiet=True)
    return replace(plain, **changes)


class KilledError(Exception):
    """What a test kills a run with."""


def separable(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    labels = torch.arange(16).remainder(2).float()
    return Batch(torch.randn(16, 5, generator=generator) + 2 * labels[:, None], labels)


def run(
    out: Path,
    schedule: Schedule,
    *,
    optimiser: Optimiser | None = None,
    fail_at: int | None = None,
    judge: loop.Judge | None = None,
    **changes: Any,
) -> Outcome:
    """A dropout network on separable features."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(net(batch.inputs)[:, 0], batch.labels)

    def batches(step: int) -> Batch:
        if step == fail_at:
            raise KilledError
        return separable(step)

    def judged(net: nn.Module) -> Mapping[str, float]:
        batch = separable(10_000)
        return {"loss": float(loss(net, batch)), "auroc": float(-loss(net, batch)), "accuracy": 0.5}

    return train(
        Trainee(network=network, loss=loss),
        batches,
        judge or judged,
        optimiser=optimiser or Optimiser(lr=0.05),
        schedule=schedule,
        epoch=4,
        job=job(out, **changes),
        fingerprint=changes.pop("fingerprint", "same"),
    )


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_it_learns(toys: ToySet, tmp_path: Path) -> None:
    Toy.fit(toys.job(tmp_path))
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["metrics"]["all"]["AUROC"]["value"] > 0.95
    rows = Metrics.read(tmp_path)
    assert [row["step"] for row in rows if "val_auroc" in row] == [8, 16, 24]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_seed_gives_the_same_weights_and_another_seed_others(toys: ToySet, tmp_path: Path) -> None:
    short = {"schedule": {"steps": 4, "every": 4}}
    found = []
    for name, seed, workers in (("a", 0, 0), ("b", 0, 1), ("c", 1, 0)):
        Toy.fit(toys.job(tmp_path / name, seed=seed, workers=workers, values=short))
        found.append(load_file(tmp_path / name / "weights.safetensors"))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("rate", ["constant", "cosine", "plateau"])
def test_a_resumed_run_gives_the_weights_of_one_that_was_not_killed(tmp_path: Path, rate: Any, average: float) -> None:
    schedule = Schedule(steps=20, every=4, rate=rate, warmup=3, patience=1, average=average)
    whole = run(tmp_path / "whole", schedule)
    for fail_at in (6, 13):
        with pytest.raises(KilledError):
            run(tmp_path / "killed", schedule, fail_at=fail_at)
    resumed = run(tmp_path / "killed", schedule)
    assert equal(whole.tensors, resumed.tensors)
    assert (whole.metrics, whole.step, whole.why) == (resumed.metrics, resumed.step, resumed.why)
    rows, again = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in Metrics.read(tmp_path / name)]
        for name in ("whole", "killed")
    )
    assert rows == again


def test_a_killed_process_loses_nothing(toys: ToySet, tmp_path: Path) -> None:
    code = """
import os, signal, sys
import torch
from pathlib import Path
from training_toys import Toy, toy_set
import detector_zoo.training.loop as loop
torch.set_num_threads(1)
write = loop.checkpoints.write
def then_die(*args):
    write(*args)
    os.kill(os.getpid(), signal.SIGKILL)
loop.checkpoints.write = then_die
Toy.fit(toy_set(Path(sys.argv[1])).job(Path(sys.argv[2])))
"""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-c", code, str(tmp_path / "toys"), str(killed)]
    path = os.pathsep.join([str(HERE), *sys.path])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False)
    assert done.returncode == -signal.SIGKILL
    found = checkpoints.find(killed)
    assert found is not None
    assert found.name == "000000008"
    for out in (killed, whole):
        Toy.fit(toys.job(out))
    assert equal(*(load_file(out / "weights.safetensors") for out in (killed, whole)))


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    schedule = Schedule(steps=8, every=4)
    with pytest.raises(KilledError):
        run(tmp_path, schedule, fail_at=5)
    (tmp_path / "checkpoints" / ".tmp").mkdir()
    (tmp_path / "checkpoints" / "000000007").mkdir()
    found = checkpoints.find(tmp_path)
    assert found is not None
    assert found.name == "000000004"
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    run(tmp_path, schedule)
    steps = [row["step"] for row in Metrics.read(tmp_path)]
    assert steps == sorted(steps) == [4, 4, 8, 8]


def test_another_recipe_is_not_resumed(tmp_path: Path) -> None:
    progress = Progress("one", step=3)
    checkpoints.write(tmp_path, progress, {"model": {"a": torch.ones(2)}}, {"optimiser": {}})
    found = checkpoints.find(tmp_path)
    assert found is not None
    assert checkpoints.read(found, "one")[0] == progress
    with pytest.raises(ZooError, match="another recipe, other data or another seed"):
        checkpoints.read(found, "other")
    (found / "optimiser.pt").write_bytes(b"junk")
    with pytest.raises(WeightsError, match="damaged checkpoint"):
        checkpoints.read(found, "one")


def test_without_resume_a_run_begins_anew(tmp_path: Path) -> None:
    schedule = Schedule(steps=8, every=4)
    with pytest.raises(KilledError):
        run(tmp_path, schedule, fail_at=5)
    first = Metrics.read(tmp_path)[0]
    with pytest.raises(KilledError):
        run(tmp_path, schedule, fail_at=0, resume=False)
    assert Metrics.read(tmp_path) == []
    assert first["step"] == 4


def test_the_fingerprint_follows_what_weights_depend_on(toys: ToySet, tmp_path: Path) -> None:
    plain = toys.job(tmp_path)
    changed = [
        replace(plain, seed=1),
        replace(plain, samples=plain.samples[1:]),
        replace(plain, values={**RECIPE, "batch": 9}),
        replace(plain, precision="bf16"),
    ]
    prints = {j.fingerprint() for j in (plain, *changed)}
    assert len(prints) == 5
    assert replace(plain, out=tmp_path / "x", workers=3, samples=plain.samples[::-1]).fingerprint() in prints
    assert plain.fingerprint() == replace(plain, workers=3, limit_minutes=5).fingerprint()


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"step \d+: the loss is (nan|inf)") as caught:
        run(tmp_path, Schedule(steps=50), optimiser=Optimiser(name="sgd", lr=1e30))
    assert "optimiser.lr" in (caught.value.hint or "")


def test_the_best_validation_is_kept_and_the_run_stops_early(tmp_path: Path) -> None:
    figures = iter([0.6, 0.8, 0.7, 0.79, 0.78, 0.9])
    seen: list[dict[str, Tensor]] = []

    def judge(net: nn.Module) -> Mapping[str, float]:
        seen.append({k: v.clone() for k, v in net.state_dict().items()})
        return {"auroc": next(figures)}

    made = run(tmp_path, Schedule(steps=100, every=2, stop=3), judge=judge)
    assert (made.step, made.steps, made.metrics) == (4, 10, {"auroc": 0.8})
    assert made.why == "3 validations without a rise of auroc"
    assert equal(made.tensors, seen[1])


def test_the_plateau_rule_turns_the_rate_down_and_ends_the_run(tmp_path: Path) -> None:
    made = run(
        tmp_path,
        Schedule(steps=1000, every=1, rate="plateau", patience=3, delta=0.001, min_lr=1e-3, monitor="accuracy"),
        optimiser=Optimiser(lr=0.02),
        judge=lambda net: {"accuracy": 0.5},
    )
    rates = [row["lr"] for row in Metrics.read(tmp_path) if "lr" in row]
    assert rates == pytest.approx([0.02] * 4 + [0.002] * 3)
    assert made.why == "the learning rate fell below 0.001"


def test_time_runs_out_and_a_longer_limit_goes_on(tmp_path: Path) -> None:
    schedule = Schedule(steps=12, every=4)
    made = run(tmp_path, schedule, limit_minutes=1e-9)
    assert (made.steps, made.why) == (1, "1e-09 minutes are over")
    assert made.metrics["auroc"] < 0
    assert run(tmp_path, schedule, limit_minutes=1e-9).steps == 1
    went_on = run(tmp_path, schedule, limit_minutes=5)
    assert equal(went_on.tensors, run(tmp_path / "whole", schedule).tensors)
    assert run(tmp_path, schedule).why == "all steps are done"


def test_a_moving_average_is_what_is_kept(tmp_path: Path) -> None:
    plain = run(tmp_path / "a", Schedule(steps=8, every=8))
    averaged = run(tmp_path / "b", Schedule(steps=8, every=8, average=0.9))
    assert not equal(plain.tensors, averaged.tensors)
    # The last iterate is the same: averaging looks on.
    model = [checkpoints.find(tmp_path / name) for name in "ab"]
    assert equal(*(load_file(folder / "model.safetensors") for folder in model if folder))


def test_the_schedule_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Schedule(steps=0)
    with pytest.raises(ValueError, match="average"):
        Schedule(steps=1, average=1.0)
    assert Schedule(steps=10, rate="cosine").factor_at(5) == pytest.approx(0.5)
    assert Schedule(steps=10, warmup=4).factor_at(0) == pytest.approx(0.25)


def test_a_head_is_trained_on_features_that_are_computed_once(toys: ToySet, tmp_path: Path) -> None:
    values = {"versions": 2, "optimiser": {"lr": 0.05}, "schedule": {"steps": 300, "every": 100}, "batch": 16}
    ToyHead.fit(toys.job(tmp_path, "toyhead", values=values))
    losses = [row["loss"] for row in Metrics.read(tmp_path) if "loss" in row]
    # On features of an untrained network there is little to learn; below log 2 it tells the classes apart.
    assert np.mean(losses[-3:]) < min(0.99 * np.mean(losses[:3]), np.log(2))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    first = (tmp_path / "weights.safetensors").read_bytes()
    ToyHead.fit(toys.job(tmp_path, "toyhead", values=values, resume=False))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()} == files
    assert (tmp_path / "weights.safetensors").read_bytes() == first
    for key, value in load_file(tmp_path / "weights.safetensors").items():
        torch.manual_seed(7)
        if not key.startswith("fc."):
            expected = Toy.from_weights(_weights(tmp_path)).network.state_dict()[key]
            assert torch.equal(value.float(), expected.half().float())


def _weights(folder: Path) -> Any:
    from detector_zoo.training.artifact import load_folder

    return load_folder(folder)


def test_a_clamp_holds_after_every_step(toys: ToySet, tmp_path: Path) -> None:
    values = {"optimiser": {"lr": 0.05}, "schedule": {"steps": 40, "every": 20}}
    for name, base in (("free", None), ("clamped", "clamped")):
        ToyHead.fit(toys.job(tmp_path / name, "toyhead", values=values, base=base))
    free, clamped = (load_file(tmp_path / name / "weights.safetensors")["fc.weight"] for name in ("free", "clamped"))
    assert free.min() < 0 <= clamped.min()
    assert clamped.max() > 0


def test_the_regression_finds_the_minimum(toys: ToySet, tmp_path: Path) -> None:
    ToyHead.fit(toys.job(tmp_path, "toyhead", values={"solver": "logistic", "l2": 0.01}))
    rows = Metrics.read(tmp_path)
    assert rows[0]["loss"] < 0.5
    # A hundredfold penalty leaves smaller weights.
    ToyHead.fit(toys.job(tmp_path / "strict", "toyhead", values={"solver": "logistic", "l2": 100.0}))
    loose, strict = (load_file(p / "weights.safetensors")["fc.weight"].norm() for p in (tmp_path, tmp_path / "strict"))
    assert strict < 0.2 * loose


def test_lines_tell_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with shown(10, 2) as show:
        show(3, "")
        show(4, "auroc 0.9")
    assert capsys.readouterr().err.startswith("step 4 of 10: auroc 0.9 (")
    with shown(10, 2, quiet=True) as show:
        show(4, "auroc 0.9")
    assert capsys.readouterr().err == ""

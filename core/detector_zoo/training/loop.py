"""The training loop: any network, any loss, and the same weights whether it was interrupted or not."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from detector_zoo.convert import one_line
from detector_zoo.errors import ZooError
from detector_zoo.loading import pick_device
from detector_zoo.training import checkpoints
from detector_zoo.training.batches import Batch, stream
from detector_zoo.training.checkpoints import Metrics, Progress
from detector_zoo.training.display import shown

if TYPE_CHECKING:
    from detector_zoo.training.job import Job

__all__ = ["Judge", "Optimiser", "Outcome", "Schedule", "Trainee", "accelerator", "train"]

CHECKPOINT_SECONDS = 600
"""Between checkpoints where validations are further apart."""
ROW_STEPS = 20
"""Steps that a row of ``metrics.jsonl`` averages the loss over, unless a validation ends it earlier."""

Judge = Callable[[nn.Module], Mapping[str, float]]
"""A network in evaluation mode to its metrics on the validation slice, the schedule's ``monitor`` among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    """How a step is taken.

    Attributes:
        name: Of torch's.
        lr: Learning rate.
        betas: Of Adam.
        momentum: Of SGD.
        weight_decay: Decoupled with AdamW, else an L2 penalty.
        clip: Largest norm of the gradient; None does not limit it.
    """

    lr: float
    name: Literal["adam", "adamw", "sgd"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float | None = None

    def of(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of a network's parameters that are not frozen."""
        parameters = [p for p in network.parameters() if p.requires_grad]
        if self.name == "sgd":
            return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return kind(parameters, self.lr, self.betas, weight_decay=self.weight_decay)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long, and how fast.

    Attributes:
        steps: At most.
        every: Steps between validations; None for an epoch.
        rate: ``constant``; ``cosine``, to 0 at the last step; or ``plateau``: times ``factor`` after ``patience``
            validations in which the monitored figure did not rise by ``delta``, until it is below ``min_lr``, which
            ends the training.
        warmup: Steps over which the rate rises from 0.
        factor: See ``rate``.
        patience: See ``rate``.
        delta: See ``rate``; also of ``stop``.
        min_lr: See ``rate``.
        stop: Validations without a rise after which the training ends; None for never.
        monitor: Metric of the validation slice that chooses the weights that are kept.
        average: Decay of a moving average of the weights, which is then what is validated and kept; 0 for none.
    """

    steps: int
    every: int | None = None
    rate: Literal["constant", "cosine", "plateau"] = "constant"
    warmup: int = 0
    factor: float = 0.1
    patience: int = 5
    delta: float = 0.0
    min_lr: float = 0.0
    stop: int | None = None
    monitor: Literal["auroc", "accuracy", "loss"] = "auroc"
    average: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.every is not None and self.every < 1):
            raise ValueError("steps and every are at least 1")
        if not 0 <= self.average < 1:
            raise ValueError("average is at least 0 and below 1")

    def factor_at(self, step: int) -> float:
        """Of the learning rate in a step, by warm-up and cosine; a function of the step alone."""
        factor = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.rate == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainee:
    """What is trained.

    Attributes:
        network: With the parameters to learn not frozen.
        loss: Of the network in training mode on a batch on its device; it may call more of it than its forward pass.
        after_step: Called on the network after every step of the optimiser: clamps weights, for instance.
    """

    network: nn.Module
    loss: Callable[[nn.Module, Batch], Tensor]
    after_step: Callable[[nn.Module], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a training.

    Attributes:
        tensors: State dict of the best validation, on the CPU.
        metrics: Of that validation.
        step: When it was.
        steps: Done in all.
        seconds: They took.
        why: The training ended.
    """

    tensors: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    step: int
    steps: int
    seconds: float
    why: str


def train(
    trainee: Trainee,
    batches: Callable[[int], Batch],
    judge: Judge,
    *,
    optimiser: Optimiser,
    schedule: Schedule,
    epoch: int,
    job: Job,
    fingerprint: str,
    machine: Any = None,
) -> Outcome:
    """Train, or go on training.

    Dropout and whatever else draws from torch's generator is seeded anew in every step by the seed and the step, so
    that a run that was killed and resumed gives, on a CPU, the very weights of one that was not.

    Args:
        trainee: Trained in place.
        batches: From a step to its batch; a pure function.
        judge: Validates.
        optimiser: See there.
        schedule: See there.
        epoch: Steps between validations where the schedule does not say.
        job: Where to write, whether to resume, how long, on what.
        fingerprint: Of all that the weights depend on; a checkpoint with another one is not resumed.
        machine: From `accelerator`; made where None.

    Raises:
        ZooError: The loss is no longer a finite number, or a checkpoint is of another run.
    """
    return _Run(trainee, judge, optimiser, schedule, epoch, job, fingerprint, machine or accelerator(job)).go(batches)


def accelerator(job: Job) -> Any:
    """Hugging Face's `Accelerator` for the job's device and precision, on as many GPUs as it was launched on.

    Raises:
        ZooError: It is not installed, or the device cannot be used.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ZooError("training needs accelerate", hint="pip install 'detector-zoo[train]'") from error
    device = pick_device(job.device)
    if job.precision == "fp16" and device != "cuda":
        raise ZooError(f"precision fp16 needs CUDA, this is {device}", hint="--precision bf16, or fp32")
    precision = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[job.precision]
    try:
        return Accelerator(cpu=device == "cpu", mixed_precision=precision)
    except ValueError as error:
        raise ZooError(f"device {device}, precision {job.precision}: {one_line(error)}") from error


class _Lesson(nn.Module):
    def __init__(self, network: nn.Module, loss: Callable[[nn.Module, Batch], Tensor]) -> None:
        super().__init__()
        self.network, self._loss = network, loss

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self.network, batch)


class _Run:
    """One training, from its checkpoint to its outcome."""

    def __init__(
        self,
        trainee: Trainee,
        judge: Judge,
        optimiser: Optimiser,
        schedule: Schedule,
        epoch: int,
        job: Job,
        fingerprint: str,
        machine: Any,
    ) -> None:
        self.trainee, self.judge, self.schedule, self.job, self.machine = trainee, judge, schedule, job, machine
        self.rate, self.clip = optimiser.lr, optimiser.clip
        self.every = schedule.every or max(1, epoch)
        self.progress = Progress(fingerprint)
        self.best: dict[str, Tensor] = {}
        network = trainee.network
        self.average = copy.deepcopy(network).requires_grad_(False) if schedule.average else None
        state = self._restore(network)
        # As one module, whose forward pass is the loss: several GPUs average gradients of what goes through it.
        self.lesson, self.optimiser = machine.prepare(_Lesson(network, trainee.loss), optimiser.of(network))
        if self.average is not None:
            self.average.to(machine.device)
        if state:
            self.optimiser.load_state_dict(state["optimiser"])
            if machine.scaler is not None and "scaler" in state:
                machine.scaler.load_state_dict(state["scaler"])
        self.metrics = Metrics(job.out, self.progress.step) if machine.is_main_process else None

    def go(self, batches: Callable[[int], Batch]) -> Outcome:
        progress, schedule = self.progress, self.schedule
        started = time.monotonic() - progress.seconds
        saved = time.monotonic()
        losses: list[float] = []
        with ExitStack() as stack:
            show = stack.enter_context(
                shown(schedule.steps, progress.step, quiet=self.job.quiet or not self.machine.is_main_process)
            )
            if self.best and not progress.finished and self._late():
                progress.finished = self._out_of_time()
            loader = () if progress.finished else stream(batches, progress.step, schedule.steps, self.job.workers)
            for step, batch in loader:
                losses.append(self._step(step, batch))
                progress.step, progress.seconds = step + 1, time.monotonic() - started
                late = self._late()
                last = step + 1 == schedule.steps or late
                due = (step + 1) % self.every == 0 or last
                overdue = self._agreed(time.monotonic() - saved > CHECKPOINT_SECONDS)
                if due or overdue or (step + 1) % ROW_STEPS == 0:
                    show(step + 1, "")
                    self._row(losses)
                if due:
                    show(step + 1, self._validate())
                if last and not progress.finished:
                    progress.finished = self._out_of_time() if late else "all steps are done"
                if due or overdue:
                    # A run that only ran out of time may go on when it is given more.
                    self._save(finished="" if late else progress.finished)
                    saved = time.monotonic()
                if progress.finished:
                    break
        return Outcome(
            tensors=self.best,
            metrics=progress.best,
            step=progress.best_step,
            steps=progress.step,
            seconds=progress.seconds,
            why=progress.finished,
        )

    def _step(self, step: int, batch: Batch) -> float:
        torch.manual_seed(self.job.seed * 1_000_003 + step)
        lr = self.rate * self.progress.scale * self.schedule.factor_at(step)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.lesson.train()
        with self.machine.autocast():
            loss = self.lesson(batch.to(self.machine.device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ZooError(
                f"step {step + 1}: the loss is {value}, with a learning rate of {lr:.3g} and {self.job.precision}",
                hint="a smaller optimiser.lr, an optimiser.clip or --precision fp32; the last checkpoint is kept",
            )
        self.optimiser.zero_grad(set_to_none=True)
        self.machine.backward(loss)
        if self.clip is not None:
            self.machine.clip_grad_norm_(self.lesson.parameters(), self.clip)
        self.optimiser.step()
        bare = self.trainee.network
        if self.trainee.after_step is not None:
            with torch.no_grad():
                self.trainee.after_step(bare)
        if self.average is not None:
            _follow(self.average, bare, min(self.schedule.average, (1 + step) / (10 + step)))
        return value

    def _validate(self) -> str:
        """Judge, keep the best, turn the rate down; returns a line for people."""
        progress, schedule = self.progress, self.schedule
        judged = self.trainee.network if self.average is None else self.average
        judged.eval()
        with torch.no_grad():
            found = {key: float(value) for key, value in self.judge(judged).items()}
        sign = -1 if schedule.monitor == "loss" else 1
        now, before = (sign * m.get(schedule.monitor, -sign * math.inf) for m in (found, progress.best))
        risen = now > before + schedule.delta
        if now > before:
            progress.best, progress.best_step = found, progress.step
            self.best = {k: v.detach().cpu().clone() for k, v in judged.state_dict().items()}
        progress.bad = 0 if risen else progress.bad + 1
        if schedule.rate == "plateau" and progress.bad and progress.bad % schedule.patience == 0:
            progress.scale *= schedule.factor
            if self.rate * progress.scale < schedule.min_lr:
                progress.finished = f"the learning rate fell below {schedule.min_lr:g}"
        if schedule.stop is not None and progress.bad >= schedule.stop:
            progress.finished = f"{progress.bad} validations without a rise of {schedule.monitor}"
        if self.metrics is not None:
            self.metrics.add(step=progress.step, **{f"val_{key}": value for key, value in found.items()})
        return ", ".join(f"{key} {value:.4f}" for key, value in found.items())

    def _row(self, losses: list[float]) -> None:
        if self.metrics is not None and losses:
            lr = self.optimiser.param_groups[0]["lr"]
            mean = sum(losses) / len(losses)
            self.metrics.add(step=self.progress.step, loss=mean, lr=lr, seconds=round(self.progress.seconds, 2))
        losses.clear()

    def _late(self) -> bool:
        limit = self.job.limit_minutes
        return limit is not None and self._agreed(self.progress.seconds > 60 * limit)

    def _out_of_time(self) -> str:
        return f"{self.job.limit_minutes:g} minutes are over"

    def _agreed(self, flag: bool) -> bool:
        """Whether any process says so: each has a clock of its own, and all have to leave the loop together."""
        if self.machine.num_processes == 1:
            return flag
        return bool(self.machine.reduce(torch.tensor(float(flag), device=self.machine.device)) > 0)

    def _restore(self, network: nn.Module) -> dict[str, Any]:
        found = checkpoints.find(self.job.out) if self.job.resume else None
        if found is None:
            return {}
        self.progress, tensors, state = checkpoints.read(found, self.progress.fingerprint)
        network.load_state_dict(tensors["model"])
        if self.average is not None:
            self.average.load_state_dict(tensors["average"])
        self.best = tensors.get("best", {})
        return state

    def _save(self, finished: str) -> None:
        self.machine.wait_for_everyone()
        if not self.machine.is_main_process:
            return
        tensors = {"model": self.trainee.network.state_dict(), "best": self.best}
        if self.average is not None:
            tensors["average"] = self.average.state_dict()
        state = {"optimiser": self.optimiser.state_dict()}
        if self.machine.scaler is not None:
            state["scaler"] = self.machine.scaler.state_dict()
        reason, self.progress.finished = self.progress.finished, finished
        checkpoints.write(self.job.out, self.progress, {k: v for k, v in tensors.items() if v}, state)
        self.progress.finished = reason


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average towards the network, statistics of normalisation included."""
    for mine, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs.detach(), 1 - decay)
        else:
            mine.copy_(theirs)

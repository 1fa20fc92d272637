"""`zoo score --engine ray`: millions of images on many processes or machines, by Ray Data.

The driver is this process. A task lists the inputs where the driver is; actors score; what they found comes back in
pieces, and the driver alone writes it, a part for each slice. Ray runs a task again whose worker died; the driver keeps
one answer for each slice. Ray's streaming executor lists no faster than is scored, so that memory is flat.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from detector_zoo import __version__
from detector_zoo.distributed import inputs
from detector_zoo.distributed.assembly import assembled
from detector_zoo.distributed.parts import Count, Parts, ready
from detector_zoo.distributed.stages import Attempts, Decode, Job, Score, ScorePrepared, lister
from detector_zoo.errors import ZooError
from detector_zoo.plain import one_line
from detector_zoo.scoring import Options

if TYPE_CHECKING:
    import pyarrow as pa

    from detector_zoo.loading import LoadedDetector

__all__ = ["PART_IMAGES", "Cluster", "connected", "score"]

PART_IMAGES = 1024
_ROUNDS = 3
_STORE_BYTES = 512 * 2**20
_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # On standard error it says nothing that a user could act on; what matters comes as an exception.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Workers of a cluster of ours compute for the user who waits, as the local engine does.
    "RAY_worker_niceness": "0",
    # Never a cluster by accident, with settings that are not these.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
# What makes Ray take 127.0.0.1 for this machine's address, as it does elsewhere than on Linux; told that address on
# Linux it replaces it by that of a network, and listens on all of them.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_INHERITED = ("HF_", "DETECTOR_ZOO_", "HUGGING_FACE_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where to run, and how to divide it.

    Attributes:
        address: Of a Ray cluster, or ``auto``; None starts one on this machine for as long as the run lasts, which
            listens on the loopback interface alone.
        workers: Processes that score; None is as many as there is room for.
        decoders: Processes that decode and transform apart from those that score; 0 leaves that to the workers, None
            is 0 on processors, and with GPUs as many as there is room for.
        gpus: GPUs a worker, a fraction too; None is 1 where the cluster has GPUs and the device allows one.
    """

    address: str | None = None
    workers: int | None = None
    decoders: int | None = None
    gpus: float | None = None


def score(
    arguments: Sequence[str],
    output: Path,
    load: Callable[..., Sequence[LoadedDetector]],
    *,
    options: Options,
    cluster: Cluster,
    part_images: int = PART_IMAGES,
    device: str = "auto",
    precision: str = "fp32",
    resume: bool = True,
    stdin: TextIO | None = None,
    report: Callable[[int, Sequence[str]], None] = lambda images, errors: None,
) -> Count:
    """Score what the arguments stand for, into a directory of parts.

    Args:
        arguments: See `detector_zoo.distributed.inputs.walk`.
        output: The directory.
        load: Makes the detectors; it is pickled, and called here once and in every worker.
        options: How to run in a worker.
        cluster: Where to run.
        part_images: Images a part. A run goes on from the parts of an earlier one of the same size.
        device: Of the workers.
        precision: Recorded; ``load`` is what applies it.
        resume: With False, parts of an earlier run are removed.
        stdin: What ``-`` reads.
        report: Called with each piece: images scored, and a line for each one that could not be. Called with none
            and a line for each slice that is scored again, because its pieces did not fit together.

    Returns:
        How much the directory holds at the end, parts of earlier runs included.

    Raises:
        ZooError: Ray is missing or unreachable, or a slice killed its workers or came in pieces that do not fit
            together again and again.
        DatasetError: The inputs cannot be listed, or the output not be written.
    """
    _require_ray(cluster)
    inputs.require(arguments)
    ready(output)
    detectors = load(device="cpu", precision="fp32")
    settings = _settings(detectors, options, precision, part_images)
    del detectors
    relative = any(not inputs.is_remote(name) and not Path(name).is_absolute() for name in arguments)
    with ExitStack() as stack:
        parts = stack.enter_context(Parts.opened(output, settings, resume=resume))
        listed = stack.enter_context(_spooled(output, stdin)) if "-" in arguments else None
        with open(listed or os.devnull, encoding="utf-8", errors="surrogateescape", newline="") as stream:
            next(inputs.walk(arguments, stdin=stream), None)  # what is wrong with the first input is told at once
        stack.enter_context(connected(cluster))
        shape = _shape(cluster, device)
        directory = str(Path.cwd()) if relative else None
        job = Job(load, options, directory, shape.threads, _attempts())
        misfits: list[int] = []
        for _ in range(_ROUNDS):
            report(0, [f"slice {number}: its pieces do not fit together, it is scored again" for number in misfits])
            stage = lister(list(arguments), part_images, listed, directory, parts.look())
            total, misfits = _round(_results(stage, job, shape), parts, report)
            if not misfits:
                break
        else:
            raise ZooError(
                f"the pieces of slice {misfits[0]} do not fit together after {_ROUNDS} attempts",
                hint="what is complete is kept; run the same command to go on",
            )
        if total is None:
            raise ZooError("the run ended before its last slice", hint="run the same command to go on")
        return parts.finish(total)


def _round(
    pieces: Generator[Mapping[str, Any]], parts: Parts, report: Callable[[int, Sequence[str]], None]
) -> tuple[int | None, list[int]]:
    """Write what comes; returns how many slices there are, and the numbers of those that came and are not complete."""
    total, misfits = None, []
    # Closed before Ray is: what is left of a run that failed would speak to a cluster that is gone.
    with closing(pieces):
        for part in assembled(pieces, report):
            if not part.complete:
                misfits.append(part.number)
            elif part.total == 0:
                total = part.number
            else:
                parts.add(part.number, part.digest, *part.rows())
    return total, misfits


def _require_ray(cluster: Cluster) -> None:
    """Import Ray, which reads its environment then."""
    for name, value in (_RAY if cluster.address else _RAY | _LOOPBACK).items():
        os.environ.setdefault(name, value)
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ZooError("--engine ray needs Ray Data", hint="pip install 'detector-zoo[ray]'") from error


def _settings(
    detectors: Sequence[LoadedDetector], options: Options, precision: str, part_images: int
) -> dict[str, Any]:
    """What the rows depend on."""
    return {
        "core_version": __version__,
        "detectors": [
            {
                "name": detector.name,
                "weights_sha256": detector.weights_sha256,
                "threshold": detector.threshold,
                "inconclusive": detector.inconclusive,
                "log_odds": [detector.judge(raw).log_odds for raw in (0.0, 1.0)],
            }
            for detector in detectors
        ],
        "fuse": options.fuse,
        "max_pixels": options.max_pixels,
        "part_images": part_images,
        "precision": precision,
    }


@contextmanager
def _spooled(output: Path, stdin: TextIO | None) -> Iterator[str]:
    """Standard input as a file, which can be read again when the task that lists is run again."""
    path = output / ".stdin.partial"
    source = stdin or sys.stdin
    try:
        with path.open("wb") as spool:
            binary = getattr(source, "buffer", None)
            while block := binary.read(1 << 20) if binary else os.fsencode(source.read(1 << 20)):
                spool.write(block)
        yield str(path.absolute())
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """A connection to Ray; one that the caller has is used and left as it is.

    Raises:
        ZooError: Ray is missing or unreachable.
    """
    _require_ray(cluster)
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        if cluster.address is None:
            room = max(_cpus(), (cluster.workers or 0) + (cluster.decoders or 0))
            own = {"object_store_memory": _STORE_BYTES, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            settings: dict[str, Any] = {"address": "local", "num_cpus": room, **own}
        else:
            inherited = {name: value for name, value in os.environ.items() if name.startswith(_INHERITED)}
            settings = {"address": cluster.address, "runtime_env": {"env_vars": inherited}}
        with _silenced(), nullcontext() if cluster.address else _loopback():
            ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = cluster.address or "on this machine"
        raise ZooError(f"Ray cannot be started or reached {where}: {one_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _loopback() -> Iterator[None]:
    """What Ray took from `_LOOPBACK` when it was imported, if that was us; the caller may have done it long before."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = any(os.environ[name] != "0" for name in _LOOPBACK)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _silenced() -> Iterator[None]:
    """No standard error for a moment: Ray's core says there, past Python, that it was told to be quiet."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class _Shape:
    """How many processes of each kind, and what each has."""

    workers: int
    decoders: int
    gpus: float
    threads: int = 1


def _shape(cluster: Cluster, device: str) -> _Shape:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, has = int(resources.get("CPU", 1)), resources.get("GPU", 0.0)
    gpus = cluster.gpus
    if gpus is None:
        gpus = 1.0 if has and device in ("auto", "cuda") else 0.0
    if gpus > has:
        raise ZooError(f"{gpus:g} GPUs a worker, and the cluster has {has:g}", hint="--gpus-per-worker 0.25, or 0")
    workers, decoders = cluster.workers, cluster.decoders
    if gpus:
        workers = workers or int(has / gpus)
        decoders = max(1, cpus - workers) if decoders is None else decoders
    else:
        decoders = decoders or 0
        workers = workers or max(1, cpus - decoders)
    return _Shape(workers, decoders, gpus, threads=max(1, cpus // (workers + decoders)) if not gpus else 1)


def _results(stage: Callable[[Any], Any], job: Job, shape: _Shape) -> Generator[Mapping[str, Any]]:
    """Run the stages; yields pieces (see `detector_zoo.distributed.stages`) as they come, in any order.

    Raises:
        ZooError: What a stage raised, or Ray.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Each share, pack and piece is a block of its own: what is one call's work is not to be lumped together by size.
    context.target_max_block_size = 1
    context.target_min_block_size = 1
    # A thread begun and ended for each task, to fill a table of statistics that nobody prints.
    context.memory_usage_poll_interval_s = None
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def pool(size: int, **resources: float) -> dict[str, Any]:
        return {
            "compute": ActorPoolStrategy(min_size=1, max_size=size, initial_size=size),
            "batch_size": None,
            "fn_constructor_args": (job,),
            **resources,
        }

    # No processor: what lists must not wait for what the actors leave.
    data = ray.data.from_items([0]).map_batches(stage, batch_size=None, num_cpus=0, label_selector=_here())
    worker = pool(shape.workers, num_cpus=1, num_gpus=shape.gpus)
    if shape.decoders:
        data = data.map_batches(Decode, batch_format="pyarrow", **pool(shape.decoders, num_cpus=1))
        data = data.map_batches(ScorePrepared, batch_format="numpy", **worker)
    else:
        data = data.map_batches(Score, batch_format="pyarrow", **worker)
    try:
        for table in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from cast("pa.Table", table).to_pylist()
    except ray.exceptions.RayError as error:
        raise _cause(error) from error


def _here() -> dict[str, str]:
    """Where the folders are, and the driver."""
    import ray

    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def _attempts() -> Any:
    """A process that counts how often each slice was begun."""
    import ray

    return ray.remote(num_cpus=0, label_selector=_here())(Attempts).remote()


def _cause(error: BaseException) -> ZooError:
    """The error of ours in one of Ray's, or Ray's in one line."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ZooError):
            return ZooError(str(seen), hint=seen.hint) if type(seen).__module__.startswith("ray") else seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return ZooError(f"Ray: {one_line(error)}", hint="what is scored is kept; run the same command to go on")

"""Is it the picture, or the file? `format_audit` measures how far a set's formats alone tell its classes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector_zoo.errors import DatasetError, ZooError
from detector_zoo.evaluation.audits import Audit, Cell, Table
from detector_zoo.evaluation.bootstrap import Figure, Resampling, auroc_of, drop_of
from detector_zoo.evaluation.copies import merged, near, perceptual_hash
from detector_zoo.evaluation.equalise import FINAL_QUALITY, equalise_file
from detector_zoo.evaluation.file_facts import GROUPS, Facts, file_facts
from detector_zoo.evaluation.in_memory import Loaded, Reader, Watch, abstentions, decided, log_odds, require_both
from detector_zoo.evaluation.intervals import FEW, Metric, ratio
from detector_zoo.evaluation.samples import Sample, source_of
from detector_zoo.loading import LoadedDetector

Floats = NDArray[np.float64]

__all__ = ["DetectorShare", "FormatAudit", "format_audit"]

ALL = "all together"
_FOLDS = 5
_TREES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorShare:
    """A detector before and after equalising.

    Attributes:
        before: AUROC on the files as they are.
        after: AUROC on the same images equalised.
        abstained: Images on which the detector abstains, as they are and equalised; they are in neither figure.
        drop: before - after, paired, of the images on which it abstains neither time.
        share: drop / (before - 0.5): how much of what lies above chance was format. Above 1 where equalising
            leaves less than chance, below 0 where it helps; NaN where ``before`` is not clearly above chance.
    """

    before: Metric
    after: Metric
    abstained: tuple[int, int]
    drop: Metric
    share: Metric


@dataclass(frozen=True, kw_only=True)
class FormatAudit(Audit):
    """Result of `format_audit`.

    Attributes:
        before: AUROC of a classifier that sees no pixel, by group of facts and for all together.
        after: The same once every image is equalised.
        codecs: How many files have which codec, by class.
        pictures: Groups of images that are of one photograph, or look alike; each lies in one fold.
        few: Whether these are too few for the figures to be believed.
        detector: None where none was asked.
    """

    name: ClassVar[str] = "format"
    before: Mapping[str, Metric]
    after: Mapping[str, Metric]
    codecs: Mapping[str, Mapping[str, int]]
    pictures: int
    few: bool
    detector: DetectorShare | None

    @property
    def shortcut(self) -> bool:
        """Whether the files tell the classes better than chance: the interval of all facts together says so.

        Not that of each group: of five, one lies above 0.5 by chance too often.
        """
        return self.before[ALL].low > 0.5

    def tables(self) -> list[Table]:
        """What files give away, the codecs, and the detector's share."""
        rows = tuple((group, metric, self.after[group]) for group, metric in self.before.items())
        verdict = "Files tell the classes apart" if self.shortcut else "No file shortcut found"
        if self.few:
            verdict += f" ({self.pictures} pictures are too few to rely on that)"
        if self.after[ALL].low > 0.5:
            verdict += ", and equalising does not hide all of it"
        found = [
            Table(
                "AUROC from the file alone, no pixel seen",
                ("facts", "as it is", "equalised"),
                rows,
                f"{verdict}. Cross-validated, photographs and what was made from them, told by the set or by their "
                "looks, in one fold; compared within folds, so that chance is 0.5.",
            ),
            Table(
                "Files",
                ("codec", "real", "generated"),
                tuple((codec, counts["real"], counts["generated"]) for codec, counts in self.codecs.items()),
            ),
        ]
        if self.detector:
            figures: tuple[tuple[Cell, ...], ...] = (
                ("AUROC as it is", self.detector.before),
                ("AUROC equalised", self.detector.after),
                ("abstained as it is, equalised", "{}, {}".format(*self.detector.abstained)),
                ("drop", self.detector.drop),
                ("share above chance that was format", self.detector.share),
            )
            note = "The share is not told where the AUROC as it is does not lie clearly above chance."
            found.insert(0, Table(f"{self.origin.detector} and the format", ("", ""), figures, note))
        return [*found, self.origin.table()]


def format_audit(
    samples: Sequence[Sample],
    detector: LoadedDetector | None = None,
    *,
    data: str = "",
    seed: int = 0,
    resamples: int = 2000,
    skip_bad: bool = False,
    watch: Watch = iter,
) -> FormatAudit:
    """Measure what codec, quantisation table, size, chroma subsampling and metadata tell of the classes.

    A random forest on the facts of `detector_zoo.evaluation.file_facts`, cross-validated in folds that keep together
    what is of one photograph (`Sample.group`, `Sample.original`) or looks alike (perceptual hash): a forest that has
    seen the twin of other label would say the opposite of the truth, and come out below chance. Intervals resample
    images (groups of them) for the scores out of the folds; they do not hold what another training set would change.
    Equalising is `detector_zoo.evaluation.equalise.equalise_file`; the equalised image counts as a JPEG file of its
    final quality.

    Args:
        samples: Of both classes.
        detector: Scored before and after equalising.
        data: What to call the data set.
        seed: Of folds, forest and bootstrap.
        resamples: Of the bootstrap.
        skip_bad: Record unreadable files and go on.
        watch: Sees the samples pass.

    Raises:
        DatasetError: A class is missing, or has fewer than two groups to cross-validate with.
        ImageError: A file cannot be read, and bad ones are not skipped.
        ZooError: scikit-learn or imagehash is not installed.
    """
    _sklearn()
    require_both(samples)
    reader = Reader(samples, skip_bad, watch)
    facts: dict[int, tuple[Facts, Facts]] = {}
    looks: dict[int, int] = {}
    phash = perceptual_hash()

    def equalised(item: Loaded) -> Image.Image:
        equal = equalise_file(item.sample.path)
        facts[item.index] = file_facts(item.data), file_facts(_as_file(equal))
        looks[item.index] = phash(item.decoded.oriented("apply"))
        return equal

    def pictures(policy: str) -> Iterator[tuple[tuple[int, int], Image.Image]]:
        for item in reader:
            yield (0, item.index), item.decoded.oriented(policy)
            yield (1, item.index), equalised(item)

    scores = np.full((2, len(samples)), np.nan)
    if detector:
        scores, errors = log_odds(detector, pictures(detector.orientation_policy), scores.shape)
        for index in {index for _, index in errors}:
            reader.fail(index, errors.get((0, index)) or errors[1, index])
    else:
        for item in reader:
            equalised(item)

    used = sorted(reader.hashes)
    chosen = [samples[index] for index in used]
    require_both(chosen)
    labels = np.array([sample.generated for sample in chosen])
    alike = near(np.array([looks[index] for index in used], np.uint64))
    groups = merged([source_of(sample) for sample in chosen], alike)
    resampling = Resampling(labels, groups, resamples=resamples, seed=seed)
    folds = _folds(labels, groups, seed)
    before, after = (_tell(labels, folds, [facts[index][when] for index in used], resampling, seed) for when in (0, 1))
    return FormatAudit(
        origin=reader.origin(
            detector,
            data,
            seed,
            resamples,
            inconclusive=abstentions(detector, scores[0, used]) if detector else 0,
        ),
        before=before,
        after=after,
        codecs=_codecs(chosen, [facts[index][0] for index in used]),
        pictures=len(set(groups)),
        few=resampling.images(labels, ~labels) < FEW,
        detector=_share(labels, scores[:, used], detector, resampling) if detector else None,
    )


def _sklearn() -> Any:
    try:
        import sklearn
    except ImportError as error:
        raise ZooError("the format audit needs scikit-learn", hint="pip install 'detector-zoo[eval]'") from error
    return sklearn


def _as_file(image: Image.Image) -> bytes:
    """What an equalised image would be on disk; its pixels alone, as Pillow hands a file's comment on."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "JPEG", quality=FINAL_QUALITY, subsampling=2)
    return buffer.getvalue()


def _folds(labels: NDArray[np.bool_], groups: Sequence[str], seed: int) -> NDArray[np.int64]:
    """The fold in which each image is judged, (N,)."""
    from sklearn.model_selection import StratifiedGroupKFold

    names = np.asarray(groups)
    smaller = min(len(np.unique(names[labels])), len(np.unique(names[~labels])))
    if smaller < 2:
        raise DatasetError("a class has fewer than two source images; the format audit cross-validates over them")
    splitter = StratifiedGroupKFold(min(_FOLDS, smaller), shuffle=True, random_state=seed)
    fold = np.zeros(len(labels), np.int64)
    for number, (_, judged) in enumerate(splitter.split(labels, labels, groups)):
        fold[judged] = number
    return fold


def _tell(
    labels: NDArray[np.bool_], folds: NDArray[np.int64], facts: Sequence[Facts], resampling: Resampling, seed: int
) -> dict[str, Metric]:
    """AUROC of the facts, by group and all together."""
    parts = {group: _matrix([fact[group] for fact in facts]) for group in GROUPS}
    parts[ALL] = np.concatenate(list(parts.values()), axis=1)
    figures = [auroc_of(labels, _judged(labels, folds, matrix, seed), within=folds) for matrix in parts.values()]
    found = dict(zip(parts, resampling.intervals(*figures), strict=True))
    return {ALL: found.pop(ALL), **found}


def _matrix(facts: Sequence[Mapping[str, float]]) -> Floats:
    names = sorted({name for fact in facts for name in fact})
    # A resolution with a denominator of 0 is no number.
    matrix = np.array([[fact.get(name, -1.0) for name in names] for fact in facts], np.float64)
    return np.where(np.isfinite(matrix), matrix, -1.0)


def _judged(labels: NDArray[np.bool_], folds: NDArray[np.int64], matrix: Floats, seed: int) -> Floats:
    """Score each image by a forest that did not see its fold, (N,)."""
    from sklearn.ensemble import RandomForestClassifier

    scores = np.zeros(len(labels))
    for fold in np.unique(folds):
        judged = folds == fold
        if len(set(labels[~judged])) == 2 and len(np.unique(matrix[~judged], axis=0)) > 1:
            forest = RandomForestClassifier(
                _TREES, class_weight="balanced", min_samples_leaf=2, random_state=_seed(seed, fold)
            )
            forest.fit(matrix[~judged], labels[~judged])
            scores[judged] = forest.predict_proba(matrix[judged])[:, 1]
    return scores


def _seed(seed: int, fold: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {fold}".encode()).digest()[:4])


def _codecs(samples: Sequence[Sample], facts: Sequence[Facts]) -> dict[str, dict[str, int]]:
    names = [next(iter(fact["codec"])).removeprefix("is ") for fact in facts]
    found = {name: {"real": 0, "generated": 0} for name in sorted(set(names))}
    for sample, name in zip(samples, names, strict=True):
        found[name][sample.label] += 1
    return found


def _share(
    labels: NDArray[np.bool_], scores: Floats, detector: LoadedDetector, resampling: Resampling
) -> DetectorShare:
    before, after = (decided(detector, row) for row in scores)
    drop = drop_of(labels, before, after)
    above = auroc_of(labels, np.where(np.isfinite(after), before, np.nan))

    def share(weights: Floats) -> Floats:
        room = above.of(weights) - 0.5
        return np.where(room > 0, drop.of(weights) / np.where(room > 0, room, 1), np.nan)

    was, became, lost, part = resampling.intervals(
        auroc_of(labels, before), auroc_of(labels, after), drop, Figure(share, ratio, drop.rests_on, drop.there)
    )
    unknown = Metric(float("nan"), float("nan"), float("nan"))
    return DetectorShare(
        before=was,
        after=became,
        abstained=(abstentions(detector, scores[0]), abstentions(detector, scores[1])),
        drop=lost,
        share=part if was.low > 0.5 else unknown,
    )

"""The properties, in the order in which they are asked, and the asking."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass

from detector_zoo.errors import ZooError
from detector_zoo.plain import one_line, plain
from detector_zoo.testing import behaviour, statics
from detector_zoo.testing.subject import Subject
from detector_zoo.testing.verdicts import Broken, DoesNotApply, Finding, NotRun, Status

__all__ = ["PROPERTIES", "Property", "examine", "examine_all"]


@dataclass(frozen=True, slots=True)
class Property:
    """What is claimed of a detector, and how to find out.

    Attributes:
        claim: A sentence that holds for every detector of the zoo.
        run: Returns what it found; raises a verdict, or whatever the detector raises.
        scores: Whether it needs the loaded detector.
    """

    claim: str
    run: Callable[[Subject], str]
    scores: bool = True


PROPERTIES: Mapping[str, Property] = {
    "registered": Property("an installed plugin registers it", statics.registered, scores=False),
    "light": Property("importing its plugin imports nothing heavy", statics.light, scores=False),
    "protocol": Property("its class has the methods that it declares", statics.protocol, scores=False),
    "card": Property("its model card is complete", statics.card, scores=False),
    "licence": Property("code and weights state a licence", statics.licence, scores=False),
    "weights": Property("its weights are pinned", statics.weights, scores=False),
    "pickle_free": Property("its package holds and opens no pickle", statics.pickle_free, scores=False),
    "recipes": Property("its recipes can be read", statics.recipes, scores=False),
    "loads": Property("it loads", behaviour.loads, scores=False),
    "shape": Property("scores have the right shape and type", behaviour.shape),
    "sizes": Property("images of any size are scored", behaviour.sizes),
    "modes": Property("images of any mode are scored", behaviour.modes),
    "extremes": Property("scores are finite, and not all the same", behaviour.extremes),
    "untouched": Property("images are left as they were", behaviour.untouched),
    "batch": Property("a score does not depend on the batch", behaviour.batch),
    "order": Property("a score does not depend on the order", behaviour.order),
    "workers": Property("a score does not depend on the workers", behaviour.workers),
    "seed": Property("a score does not depend on the seed", behaviour.seed),
    "sources": Property("a score does not depend on how the image comes", behaviour.sources),
    "heatmap": Property("heatmaps fit their image", behaviour.heatmap),
    "evidence": Property("evidence is named and finite", behaviour.evidence),
    "direction": Property("generated examples score above real ones", behaviour.direction),
}


def examine(subject: Subject, name: str) -> Finding:
    """Ask for one property; never raises anything but a KeyboardInterrupt.

    Raises:
        KeyError: There is no such property.
    """
    claim = PROPERTIES[name].claim
    with redirect_stdout(sys.stderr):  # what a detector prints is no verdict
        status, detail = _verdict(subject, PROPERTIES[name])
    return Finding(name, claim, status, plain(detail, 500))


def examine_all(subject: Subject) -> Iterator[Finding]:
    """Ask for all of them, in order."""
    return (examine(subject, name) for name in PROPERTIES)


def _verdict(subject: Subject, asked: Property) -> tuple[Status, str]:
    if asked.scores:
        try:
            _ = subject.loaded
        except KeyboardInterrupt:
            raise
        # Said in full by the property "loads".
        except BaseException:  # noqa: BLE001
            return "not run", "the detector does not load"
    try:
        return "ok", asked.run(subject)
    except Broken as error:
        return "failed", str(error)
    except DoesNotApply as error:
        return "does not apply", str(error)
    except NotRun as error:
        return "not run", str(error)
    except ZooError as error:
        return "failed", f"{error} ({error.hint})" if error.hint else str(error)
    except KeyboardInterrupt:
        raise
    # Whatever a stranger's class raises is a finding.
    except BaseException as error:  # noqa: BLE001
        return "failed", f"{type(error).__name__}: {one_line(error)}"

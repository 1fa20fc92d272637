"""The conformance suite: what every detector has to keep, whoever wrote it.

In the tests of a plugin::

    from detector_zoo.testing import conformance
    from detector_zoo_my_detector.detector import MyDetector

    test_conformance = conformance(MyDetector)

is one test a property. `zoo check my-detector` asks the same from the command line. The fixtures of
`detector_zoo.testing.pytest_plugin` come with the installation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["conformance"]


def conformance(
    detector: type | str,
    *,
    real: Path | str | Sequence[Path | str] = (),
    generated: Path | str | Sequence[Path | str] = (),
    weights: Path | str | None = None,
) -> Callable[[str], None]:
    """A parametrised test function, one test a property, to be bound to a name that begins with ``test_``.

    Args:
        detector: The class that an installed plugin registers, or a name as `detector_zoo.load` takes it.
        real: Photographs, files or folders; by default ``examples/real`` beside the plugin's module.
        generated: Generated images; by default ``examples/generated`` beside it.
        weights: A folder that `zoo train` wrote, instead of the weights of the catalogue.

    Returns:
        A function for pytest to collect. A property that fails is a failed test of one line; one that cannot be asked
        because the detector does not load, or without examples, is a skipped one.
    """
    import pytest

    from detector_zoo.testing.properties import PROPERTIES, examine
    from detector_zoo.testing.subject import Subject

    subject = Subject(detector, real=real, generated=generated, weights=weights)

    @pytest.mark.parametrize("name", list(PROPERTIES))
    def test_conformance(name: str) -> None:
        finding = examine(subject, name)
        if finding.status == "failed":
            pytest.fail(f"{finding.claim}: {finding.detail}", pytrace=False)
        if finding.status == "not run":
            pytest.skip(finding.detail)

    return test_conformance

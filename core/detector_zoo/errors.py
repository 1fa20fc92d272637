"""The exceptions of the zoo.

::

    ZooError                    anything that the zoo itself reports
    ├── PluginError             a plugin is broken, or two plugins claim one name
    ├── UnknownDetectorError    no detector or weights of that name
    ├── WeightsError            weights cannot be had, or are not what they should be
    ├── ImageError              a file cannot be read as an image
    ├── DatasetError            a data set or a list of paths is not usable
    └── LicenceError            the licence of the weights forbids the use asked for

Every one carries a one-line message and, where there is something to do about it, a ``hint``.
The command line prints both and exits with ``exit_code``: 2 where the request was wrong, 1 where it failed.
"""

from __future__ import annotations

__all__ = [
    "DatasetError",
    "ImageError",
    "LicenceError",
    "PluginError",
    "UnknownDetectorError",
    "WeightsError",
    "ZooError",
]


class ZooError(Exception):
    """Base class of everything that the zoo reports.

    Args:
        message: One line that names the thing and the cause.
        hint: One line that says what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class PluginError(ZooError):
    """A plugin failed to load, registered something invalid, or claimed a name that is taken."""


class UnknownDetectorError(ZooError):
    """No installed plugin registers that detector, or no weights of that tag are known."""

    exit_code = 2


class WeightsError(ZooError):
    """Weights cannot be fetched, do not match their hash, or do not fit the network."""


class ImageError(ZooError):
    """A file is missing, unreadable, too large, or not an image."""


class DatasetError(ZooError):
    """A data set, a list of paths, or a predictions file cannot be used."""


class LicenceError(ZooError):
    """The licence of the weights does not allow the use that was asked for."""

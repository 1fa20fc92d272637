"""What huggingface_hub raises, in one line that says what to do."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detector_zoo.convert import one_line, os_error
from detector_zoo.errors import WeightsError

__all__ = ["bars", "explain", "network_hint", "offline", "status_of"]

_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})")
LOGIN = "`hf auth login`, or set HF_TOKEN"


def offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids the network; it holds for every server, not only for the Hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def status_of(error: Exception) -> int | None:
    """The HTTP status behind an exception, if a server answered at all."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and (found := _XET_STATUS.search(str(error))):  # hf_xet has it in the text only
        return int(found[1])
    return status


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Within the block, huggingface_hub draws progress bars only if ``shown``, and only on a terminal."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined]

    hide = not (shown and sys.stderr.isatty()) and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def network_hint(error: Exception) -> str:
    """What to look at where no server gave an answer."""
    # Uploads and downloads of large files go to a server of another name, which a firewall may not let through.
    xet = "xet" in f"{type(error).__module__} {error}".lower()
    return "check the network and HF_ENDPOINT" + ("; HF_HUB_DISABLE_XET=1 does without the Hub's Xet" if xet else "")


def explain(
    error: Exception,
    name: str,
    repo: str,
    filename: str,
    revision: str | None,
    *,
    by_hand: str | None = None,
    missing: str | None = None,
) -> WeightsError:
    """The error of a download.

    Which exceptions come is up to the versions of huggingface_hub, its HTTP client and hf_xet.

    Args:
        error: What was raised.
        name: Of the weights, for the message.
        repo: On the Hub.
        filename: In the repository.
        revision: Of the repository.
        by_hand: What a user can do where this machine cannot, a half-sentence that begins with "or".
        missing: What to say instead where the repository has no such file.
    """
    from huggingface_hub import constants, errors

    status = status_of(error)
    if isinstance(error, errors.GatedRepoError):
        return WeightsError(
            f"{name}: {repo} is gated on the Hub and this account has no access ({status})",
            hint=f"accept its conditions at {constants.ENDPOINT}/{repo}, then {LOGIN}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return WeightsError(f"{name}: {repo} on the Hub has no revision {revision}", hint=by_hand)
    if isinstance(error, errors.RepositoryNotFoundError):
        return WeightsError(
            f"{name}: the Hub has no repository {repo}, or it is private ({status})", hint=f"if it is private: {LOGIN}"
        )
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return WeightsError(
            f"{name}: {repo} on the Hub has no file {filename} at revision {revision}", hint=missing or by_hand
        )
    if status in {401, 403}:
        return WeightsError(f"{name}: the Hub refuses access to {repo} ({status})", hint=LOGIN)
    if offline():
        return WeightsError(
            f"{name}: {repo}/{filename} is not in the cache, and HF_HUB_OFFLINE forbids fetching it",
            hint=_and("unset HF_HUB_OFFLINE", by_hand),
        )
    if status is not None:
        return WeightsError(f"{name}: {constants.ENDPOINT} answered {status} for {repo}/{filename}", hint=by_hand)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return os_error(Path(os.fsdecode(error.filename)), error, variable="HF_HOME")
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return os_error(Path(constants.HF_HUB_CACHE), error, variable="HF_HOME")
    return WeightsError(
        f"{name}: cannot fetch {repo}/{filename} from {constants.ENDPOINT}: {one_line(error)}",
        hint=_and(network_hint(error), by_hand),
    )


def _and(first: str, by_hand: str | None) -> str:
    return f"{first}, {by_hand}" if by_hand else first

"""How `zoo app` serves: `Options`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from detector_zoo.errors import ZooError

__all__ = ["Options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to serve.

    Attributes:
        detectors: Names, ``method`` or ``method.tag``; ``all`` stands for every detector whose weights are at hand.
        host: Address to listen on.
        port: TCP port.
        auth: ``USER:PASSWORD`` that page and API ask for (HTTP Basic); None asks for nothing, which an address
            beyond this machine does not allow.
        max_upload: Bytes of a request's body.
        max_pixels: Width times height of an image; larger ones are refused before a pixel is decoded.
        concurrency: Analyses that run at a time.
        queue: Further requests that may wait; beyond them a request is told to come back (429).
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        embed: The page is shown in another site's frame and behind its proxy, as a Hugging Face Space is: it may be
            framed by huggingface.co, any Host header is taken, and nobody is asked for a password.
        page: Serve the page beside the API.

    Raises:
        ZooError: ``auth`` is not of the form USER:PASSWORD, or it is missing where the address needs it.
    """

    detectors: tuple[str, ...] = ("all",)
    host: str = "127.0.0.1"
    port: int = 7860
    auth: str | None = field(default=None, repr=False)
    max_upload: int = 32_000_000
    max_pixels: int = 50_000_000
    concurrency: int = 2
    queue: int = 16
    device: str = "auto"
    embed: bool = False
    page: bool = True

    def __post_init__(self) -> None:
        if self.auth is not None:
            user, colon, password = self.auth.partition(":")
            if not (user and colon and password):
                raise ZooError("the login is not of the form USER:PASSWORD")
        elif not self.loopback and not self.embed:
            raise ZooError(
                f"{self.host} can be reached from other machines, so page and API need a login",
                hint="set DETECTOR_ZOO_AUTH=USER:PASSWORD, or listen on 127.0.0.1",
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name, which may stand for any machine
            return False

"""C2PA credentials of a file, read offline with c2pa-python: what they claim and whether the signature holds.

Nothing is fetched: neither a manifest that lies elsewhere nor a certificate's revocation, and no list of trusted
signers is used. So a signature that holds is reported as valid and its signer as unknown; who signed is what the
certificate says.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

from detector_zoo.plain import one_line, plain

__all__ = ["Credentials", "read"]

State = Literal["absent", "valid", "invalid", "elsewhere", "unreadable", "not looked for"]

_SETTINGS = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "core": {"allowed_network_hosts": []},
}
_LIMIT = 200
"""Characters of any text that a file brings."""
_AI = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "algorithmicMedia")
"""Digital source types of the IPTC that say a machine made the picture, or parts of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What the credentials of a file say.

    Attributes:
        state: "valid": the signature holds and the picture is the one that was signed, by whoever has the
            certificate; "invalid": it was changed since, or the signature does not hold; "elsewhere": the file only
            points to credentials on a server, which are not fetched; "unreadable"; "absent", which is no evidence of
            anything; "not looked for" without c2pa-python, or in a format that cannot hold them.
        generator: Program that wrote them, as it calls itself.
        signer: As the certificate calls it; nobody has checked the certificate's issuer.
        time: Of signing, as they say, or "".
        actions: What was done, such as "c2pa.created".
        sources: IPTC digital source types, such as "trainedAlgorithmicMedia".
        problems: Codes and explanations of what failed.
        detail: One line where there is more to say.
    """

    state: State
    generator: str = ""
    signer: str = ""
    time: str = ""
    actions: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    detail: str = ""

    @property
    def says_generated(self) -> bool:
        """Whether they say that a machine made the picture or parts of it."""
        return any(source in _AI for source in self.sources)

    @property
    def line(self) -> str:
        """One line for people."""
        what = {
            "absent": "none (which is no evidence: most files have none)",
            "valid": "signature valid, signer not checked against any list",
            "invalid": "NOT valid: the file was changed after signing, or the signature does not hold",
            "elsewhere": "kept on a server, not fetched",
            "unreadable": "unreadable",
            "not looked for": "not looked for",
        }[self.state]
        claims = [
            f"signed by {self.signer!r}" if self.signer else "",
            f"written by {self.generator!r}" if self.generator else "",
            f"at {self.time}" if self.time else "",
            f"says: {', '.join(self.sources)}" if self.sources else "",
            self.detail,
            *self.problems[:2],
        ]
        return "; ".join(filter(None, [what, *claims]))

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {**asdict(self), "says_generated": self.says_generated}


def read(data: bytes, mime: str | None) -> Credentials:
    """Read a file's credentials; whatever is wrong with them is told, not raised.

    Args:
        data: The file's bytes.
        mime: Of the content, such as "image/jpeg"; None where Pillow knows none.
    """
    if importlib.util.find_spec("c2pa") is None:
        return Credentials(state="not looked for", detail="pip install 'detector-zoo[app]' brings c2pa-python")
    import c2pa

    if mime not in _mime_types():
        return Credentials(state="not looked for", detail="this format holds none that can be read")
    try:
        with c2pa.Reader(mime, io.BytesIO(data), context=_context()) as reader:
            return _told(json.loads(reader.json()))
    except c2pa.C2paError.ManifestNotFound:  # no failure: most files have none
        return Credentials(state="absent")
    # The bytes are a stranger's and the reader is native code: nothing that it raises may end the analysis.
    except Exception as error:  # noqa: BLE001
        text = one_line(error, _LIMIT)
        if "remote manifest" in text:
            return Credentials(state="elsewhere", detail=text)
        return Credentials(state="unreadable", detail=text)


@cache
def _mime_types() -> frozenset[str]:
    import c2pa

    return frozenset(c2pa.Reader.get_supported_mime_types())


@cache
def _context() -> Any:
    import c2pa

    return c2pa.Context(c2pa.Settings.from_dict(_SETTINGS))


def _told(store: Mapping[str, Any]) -> Credentials:
    """The active manifest of a manifest store, and the outcome of its validation."""
    manifest = _mapping(_mapping(store.get("manifests")).get(str(store.get("active_manifest"))))
    signature = _mapping(manifest.get("signature_info"))
    generator = next(iter(_mappings(manifest.get("claim_generator_info"))), {})
    actions = [action for assertion in _actions(manifest) for action in _mappings(assertion.get("actions"))]
    problems = [
        f"{_text(item.get('code'))}: {_text(item.get('explanation'))}"
        for item in _mappings(store.get("validation_status"))
        if item.get("code") != "signingCredential.untrusted"  # always so here: there is no list to trust by
    ]
    return Credentials(
        state="valid" if store.get("validation_state") in ("Valid", "Trusted") else "invalid",
        generator=_text(
            " ".join(str(generator[key])[:_LIMIT] for key in ("name", "version") if generator.get(key))
            or manifest.get("claim_generator")
        ),
        signer=_text(signature.get("issuer") or signature.get("common_name")),
        time=_text(signature.get("time")),
        actions=_unique(action.get("action") for action in actions),
        sources=_unique(str(action.get("digitalSourceType") or "").rpartition("/")[2] for action in actions),
        problems=tuple(problems[:8]),
    )


def _actions(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for assertion in _mappings(manifest.get("assertions")):
        if str(assertion.get("label", "")).startswith("c2pa.actions"):
            yield _mapping(assertion.get("data"))


def _unique(values: Iterator[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_text(value) for value in values if value))[:8]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict):
            yield item


def _text(value: Any) -> str:
    return plain(str(value or "")[: 2 * _LIMIT], _LIMIT)

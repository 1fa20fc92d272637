"""Triples: photographs, their local edits, and the masks of the edits, in three folders, under equal names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from detector_zoo.evaluation.entries import Entry
from detector_zoo.sources import walk

__all__ = ["Triples"]

_ROLES = {"original": ("original", "originals"), "edited": ("inpainted", "edited"), "mask": ("mask", "masks")}


class Triples:
    """``original/7.png``, ``inpainted/7.png``, ``mask/7.png``; suffixes may differ, folders below count as names."""

    def accepts(self, place: str) -> bool:
        """A folder with one of each of the three."""
        return len(_folders(place)) == len(_ROLES)

    def entries(self, place: str, *, absolute_paths: bool) -> Iterator[Entry]:
        """Each photograph, real, and its edit, generated; ``absolute_paths`` means nothing here."""
        found: dict[str, dict[str, list[Path]]] = {}
        for role, folder in _folders(place).items():
            for path in map(Path, walk([str(folder)])):
                name = str(path.relative_to(folder).with_suffix(""))
                found.setdefault(role, {}).setdefault(name, []).append(path)
        for name in sorted(set().union(*found.values())):
            files = {role: found[role].get(name, []) for role in _ROLES}
            wrong = [f"{len(paths)} times as {role}" for role, paths in files.items() if len(paths) != 1]
            if wrong:
                yield Entry(name=name, problem=f"a triple has one file of each role; it is there {', '.join(wrong)}")
                continue
            original, edited, mask = (files[role][0] for role in _ROLES)
            source = Path(place).name
            yield Entry(name=f"original/{name}", path=original, label="real", kind="photo", group=name, source=source)
            yield Entry(
                name=f"inpainted/{name}",
                path=edited,
                label="generated",
                kind="inpaint",
                group=name,
                source=source,
                original=original,
                mask=mask,
            )


def _folders(place: str) -> dict[str, Path]:
    root = Path(place)
    return {role: root / name for role, names in _ROLES.items() for name in names if (root / name).is_dir()}

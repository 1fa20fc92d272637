"""Folders whose names are the labels: ``0_real/1_fake``, ``nature/ai``, ``real/fake``, ``real/generated``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from detector_zoo.errors import DatasetError
from detector_zoo.evaluation.entries import Entry, Folders
from detector_zoo.sources import printable, walk

__all__ = ["LabelFolders"]


class LabelFolders:
    """ForenSynths, UFD, GenImage and the like.

    The first folder above the label that is no split names the generator (``progan/airplane/0_real``,
    ``imagenet_midjourney/val/ai``); without one, the first below it (``real/coco``, ``fake/sdxl``).
    """

    def accepts(self, place: str) -> bool:
        """Any folder."""
        return Path(place).is_dir()

    def entries(self, place: str, *, absolute_paths: bool) -> Iterator[Entry]:
        """Every image below; ``absolute_paths`` means nothing here.

        Raises:
            DatasetError: No pair of folder names tells the classes, or two do.
        """
        root = Path(place)
        paths = [Path(path) for path in walk([place])]
        names = [path.relative_to(root) for path in paths]
        folders = Folders([name.parts[:-1] for name in names])
        if len(folders.pairs) != 1:
            many = "; ".join(" and ".join(pair) for pair in folders.pairs)
            cause = f"several pairs of folders may be the labels: {many}" if many else "no folders tell the labels"
            raise DatasetError(
                f"{printable(place)}: {cause}",
                hint="name folders 0_real and 1_fake, nature and ai, real and fake, or give a manifest.csv",
            )
        for path, name in zip(paths, names, strict=True):
            yield folders.entry(str(name), name.parts[:-1], path=path)

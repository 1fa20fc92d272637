"""Reading YAML strictly: safe types only, and no key given twice, of which YAML would silently keep the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from detector_zoo.errors import WeightsError

__all__ = ["read"]


def read(path: Path) -> Any:
    """The document in a YAML file.

    Raises:
        WeightsError: If it cannot be read, or is not YAML.
    """
    try:
        return yaml.load(path.read_bytes(), _Loader)  # noqa: S506 (a SafeLoader's subclass)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise WeightsError(f"{path}: {' '.join(str(error).split())}") from error


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

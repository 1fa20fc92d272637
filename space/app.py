"""The detector zoo as a Hugging Face Space."""

from detector_zoo.app.options import Options
from detector_zoo.app.server import serve

# The Space's proxy stands in front, so `embed`: no login, any Host header, and huggingface.co may frame the page.
OPTIONS = Options(host="0.0.0.0", port=7860, embed=True, max_upload=16_000_000, max_pixels=25_000_000)  # noqa: S104

if __name__ == "__main__":
    serve(OPTIONS)

"""What mkdocs needs besides docs/: pages of the repository's other texts, and links that lead to them.

A card, the README and the like are read from where they stand, so that no copy can grow old, and the links in all
pages stay those that work in the repository itself: `on_page_markdown` makes links of the site of them.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def pages() -> dict[str, str]:
    """By path in the repository, the page of the site that a text outside docs/ becomes."""
    cards = sorted(ROOT.glob("plugins/detector_zoo_*/CARD.md"))
    named = {
        card.relative_to(ROOT).as_posix(): f"methods/{card.parent.name.removeprefix('detector_zoo_')}.md"
        for card in cards
    }
    texts = {
        name: f"project/{name.lower()}" for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
    }
    # mkdocs would take a readme.md for the index of its folder.
    return {**named, **texts, "README.md": "project/about.md", "examples/CREDITS.md": "project/credits.md"}


def linked(markdown: str, source: str, page: str) -> str:
    """Turn the links of a text into links of the site.

    Args:
        markdown: The text.
        source: Its path in the repository.
        page: Its path in the site's sources.

    Returns:
        The text. A link to a file of the repository that has no page becomes the words that were linked; one to
        nothing stays, and the strict build names it.
    """
    made = pages()

    def replaced(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = made.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if place is not None:
            return f"[{words}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"
        return words if (ROOT / path).exists() else match[0]

    parts, at = [], 0
    for block in FENCED.finditer(markdown):
        parts += [LINK.sub(replaced, markdown[at : block.start()]), block[0]]
        at = block.end()
    return "".join([*parts, LINK.sub(replaced, markdown[at:])])


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of texts outside docs/."""
    for source, page in pages().items():
        if (ROOT / source).exists():
            files.append(File.generated(config, page, abs_src_path=os.fspath(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Mend the links of every page."""
    uri = page.file.src_uri
    sources = {made: source for source, made in pages().items()}
    return linked(markdown, sources.get(uri, f"docs/{uri}"), uri)

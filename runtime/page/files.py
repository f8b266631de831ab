"""Files of the page, with headers that keep it harmless: it loads nothing from elsewhere and runs no text as code."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).with_name("static")
INDEX = "index.html"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


class PageFile(NamedTuple):
    """A file as it is sent."""

    body: bytes
    kind: str


def read_page_files() -> dict[str, PageFile]:
    """Return name -> file of everything that the page consists of."""
    files = sorted(file for file in FOLDER.iterdir() if file.suffix in KINDS)
    return {file.name: PageFile(file.read_bytes(), KINDS[file.suffix]) for file in files}

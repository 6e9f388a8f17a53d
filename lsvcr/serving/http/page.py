"""The page at `/`, and the policy that lets a browser run nothing but what stands in it."""

import base64
import hashlib
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Page:
    """The page as it is sent."""

    body: bytes
    headers: list[tuple[bytes, bytes]]


class _Inline(HTMLParser):
    """Collects the contents of <script> and <style>."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: dict[str, list[str]] = {"script": [], "style": []}
        self._open: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open a block."""
        if tag in self.found:
            self._open = tag
            self.found[tag].append("")

    def handle_data(self, data: str) -> None:
        """Text, which belongs to the open block if there is one."""
        if self._open:
            self.found[self._open][-1] += data

    def handle_endtag(self, tag: str) -> None:
        """Close the block."""
        if tag == self._open:
            self._open = None


def read_page(path: Path = PAGE) -> Page | None:
    """The page with its headers; None for an installation without it."""
    if not path.is_file():
        return None
    body = path.read_bytes()
    return Page(
        body,
        [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", policy(body.decode("utf-8")).encode()),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"no-cache"),
        ],
    )


def policy(html: str) -> str:
    """The content-security-policy of a page: its own inline scripts and styles by hash, requests to this server."""
    # A browser hashes a block after it has made every line end a single newline.
    inline = _Inline()
    inline.feed(html.replace("\r\n", "\n").replace("\r", "\n"))
    inline.close()
    allowed = {
        tag: " ".join(_hash(text) for text in texts) or "'none'" for tag, texts in inline.found.items()
    }
    return (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

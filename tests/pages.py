"""Reading pages of HTML in tests: strictly, and in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

HOSTILE = "<script>alert(1)</script>\"'><img src=http://x onerror=y>"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "br"}


class Strict(HTMLParser):
    """Tags that are open, all that were seen with their attributes, and their text; a tag closed out of turn is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(text: str) -> Strict:
    """The page, every tag of which is closed in turn."""
    reader = Strict()
    reader.feed(text)
    reader.close()
    assert not reader.open
    return reader


def is_safe(text: str) -> None:
    """Nothing runs, nothing is fetched, every figure has its table, every table its caption and headers."""
    reader = parsed(text)
    tags = [tag for tag, _ in reader.seen]
    assert not {"script", "img", "link", "iframe", "object"} & set(tags)
    assert not any(name.startswith("on") or name in ("src", "href") for _, attrs in reader.seen for name in attrs)
    assert "default-src 'none'" in text
    assert not re.search(r"(?<!\w)(?:src|href)=\"|url\(|@import", text)
    assert tags.count("h1") == 1
    assert tags.count("table") == tags.count("caption")
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in reader.seen if tag == "th")
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") for tag, attrs in reader.seen if tag == "svg")
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert all("<table>" in figure for figure in figures)


def cut_on_paper(text: str, folder: Path) -> list[tuple[str, int]]:
    """Tables that are wider than a sheet of A4 between its margins, by their captions, and how far (pixels), as a browser lays
    them out by the page's rules for print."""
    probe = """<script>document.title = JSON.stringify([...document.querySelectorAll(".wide")].filter(e => e.offsetParent)
        .map(e => [e.querySelector("caption").textContent, e.scrollWidth - e.clientWidth]))</script>"""
    page = folder / "paper.html"
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace("@media print", "@media screen")
    page.write_text(bare.replace("</main>", f"</main>{probe}"), encoding="utf-8")
    assert BROWSER
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [*command, "--window-size=718,1000", "--hide-scrollbars", "--dump-dom", page.as_uri()],
        check=True, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title
    widths = json.loads(html.unescape(title[1]))
    assert widths
    return [(caption, excess) for caption, excess in widths if excess > 0]


def draw(text: str, folder: Path) -> tuple[list[str], list[str], Path]:
    """A browser opens the page: what its console said, the addresses the page made it ask for (its own business has no
    initiator), and a picture."""
    page, picture, net = folder / "page.html", folder / "page.png", folder / "net.json"
    page.write_text(text, encoding="utf-8")
    assert BROWSER
    quiet = [
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-quic",
    ]
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", f"--log-net-log={net}", "--window-size=1100,1600"]
    done = subprocess.run(
        [*command, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True, text=True, timeout=110
    )
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = [event.get("params", {}) for event in json.loads(net.read_text(encoding="utf-8"))["events"]]
    asked = {params["url"] for params in events if params.get("initiator", "not an origin") != "not an origin"}
    return told, sorted(asked), picture

"""Unsafe markup in a model's text: what would run, or load, if a page showed the text as HTML.

Pure. A filter and no sanitizer: whoever shows a model's text must still escape it. Found are the
opening words of what is dangerous (`<script`, ` onerror=`, `javascript:`), so that masking them
is enough to make it harmless, and no find is longer than a word or two.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

Span = tuple[int, int]

# Elements that run, load or redirect; a closing tag alone does none of it, but belongs to it.
_ELEMENT = re.compile(
    r"</?(?:script|iframe|object|embed|applet|meta|link|base|style|form|svg|math|template"
    r"|frame|frameset|noscript|portal)(?![a-z0-9])",
    re.IGNORECASE,
)
_TAG = re.compile(r"<[a-zA-Z]")
# An attribute that is an event handler. Only after some tag began: in prose it is only a word.
_HANDLER = re.compile(r"(?<=[\s/\"'`])on[a-z]{3,32}\s{0,8}=", re.IGNORECASE)
_GAP = r"[\t\n\r]{0,4}"  # browsers leave these out of a URL's scheme
_SCHEME = re.compile(
    r"(?<![\w])(?:" + _GAP.join("javascript") + "|" + _GAP.join("vbscript") + rf"){_GAP}:(?=\S)"
    r"|(?<![\w])data:text/html",
    re.IGNORECASE,
)
# The same where a URL is expected: a blank after the colon does not matter there.
_LINKED = re.compile(
    r"(?:(?<=\()|(?<==)|(?<=[\"'<`])|(?<=\]:)) {0,4}(?:java|vb)script:", re.IGNORECASE
)
_WORD = re.compile(r"[^\s<>\"'()]+")
_UNSEEN = dict.fromkeys(range(33))
_CODED = ("javascript:", "vbscript:", "data:text/html")
# How many characters a find with blanks in it may have.
REACH = 64


def spans(text: str, at: int = 0, *, in_tags: bool = False) -> Iterator[Span]:
    """Yield where unsafe markup begins and ends, from `at` on; finds may overlap.

    What stands before `at` is context; `in_tags` says that a tag began before the text.
    """
    if "<" in text:
        for found in _ELEMENT.finditer(text, at):
            yield found.span()
    if "=" in text:
        tag = 0 if in_tags else _first_tag(text)
        if tag >= 0:
            for found in _HANDLER.finditer(text, max(at, tag)):
                yield found.span()
    if ":" in text:
        for pattern in (_SCHEME, _LINKED):
            for found in pattern.finditer(text, at):
                yield found.span()
    if "&" in text:  # a scheme may be written with character references
        for found in _WORD.finditer(text, at):
            if "&" in found[0] and _is_coded_scheme(found[0]):
                yield found.span()


def begins_tag(text: str) -> bool:
    """Tell whether a tag begins somewhere in a text."""
    return _first_tag(text) >= 0


def _first_tag(text: str) -> int:
    found = _TAG.search(text)
    return -1 if found is None else found.start()


def _is_coded_scheme(word: str) -> bool:
    plain = html.unescape(word).translate(_UNSEEN).lower()
    return any(scheme in plain for scheme in _CODED)

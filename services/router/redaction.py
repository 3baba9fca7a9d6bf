"""Redaction of the texts for models, by tokens that are put back in the answer.

`[EMAIL_1]` stands for the first e-mail address of a request, an entity's pseudonym for its key.
The mapping lives in the request's memory and nowhere else: no record, log, cache or vendor gets
it. It happens before any path is known, so both paths get the same text, and its digest.
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from services.chassis.errors import InvalidArgumentError
from services.router.filters import Finder, find_all

TOKEN = re.compile(r"\[[A-Z][A-Z0-9_]*_[a-z0-9]+\]")
_BEGUN = re.compile(r"\[(?:[A-Z][A-Z0-9_]*(?:_[a-z0-9]*)?)?")
_LONGEST_TOKEN = 256
_PASSES = 16


class Redactor:
    """Redacts the texts of one request.

    Attributes:
        pseudonyms: What models get in place of an entity's keys, by key.
        values: What each token stands for.
        kinds: The kind of everything that was replaced, once for each time.
        named: Names of the entity keys whose pseudonyms stand in the texts.
    """

    def __init__(
        self,
        finders: Sequence[Finder],
        pseudonyms: Mapping[str, str] | None = None,
        entity: Mapping[str, object] | None = None,
        in_texts: Sequence[str] = (),
    ) -> None:
        """`pseudonyms` are tokens by key; the values of `in_texts` are replaced in texts, too."""
        self._finders = finders
        self._tokens: dict[tuple[str, str], str] = {}
        self._next: dict[str, int] = {}
        self._whole = ""
        self.pseudonyms = pseudonyms or {}
        self._names = {token: name for name, token in self.pseudonyms.items()}
        keys = entity or {}
        self._keys = [(str(keys[name]), self.pseudonyms[name]) for name in in_texts]
        self.values = {token: str(keys[name]) for token, name in self._names.items()}
        self.kinds: list[str] = []
        self.named: list[str] = []

    def redact(self, texts: Sequence[str]) -> list[str]:
        """Return the texts of a request with everything replaced that the rules find.

        Raises:
            InvalidArgumentError: NOT_REDACTABLE: finds that hide each other, one behind the other.
        """
        self._whole = "\x00".join(texts)
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> str:
        parts = [*split_at_tokens(text, self.values)]
        for value, token in self._keys:
            parts = [piece for part in parts for piece in self._without_key(part, value, token)]
        for _ in range(_PASSES):  # what stood beside something cut out may be found only then
            pieces = [piece for part in parts for piece in self._without_finds(part)]
            if len(pieces) == len(parts):
                break
            parts = pieces
        else:
            raise InvalidArgumentError(
                "NOT_REDACTABLE",
                "a text holds too many things to redact that hide each other; put blanks between",
            )
        self.named += [self._names[part] for part in parts if part in self._names]
        return "".join(parts)

    def _without_finds(self, part: str) -> Iterator[str]:
        """Split a part where the rules find something."""
        start = 0
        if part not in self.values:
            for find in find_all(self._finders, part):
                yield part[start : find.start]
                yield self._token(find.kind, part[find.start : find.end])
                start = find.end
        yield part[start:]

    def _without_key(self, part: str, value: str, token: str) -> Iterator[str]:
        """Split a part where a key's value stands as a word of its own."""
        start = 0
        if part not in self.values:
            for found in _words(part, value):
                yield part[start:found]
                yield token
                start = found + len(value)
        yield part[start:]

    def _token(self, kind: str, value: str) -> str:
        """Return the token of a value, the same one each time; none that a text brought along."""
        self.kinds.append(kind)
        known = self._tokens.get((kind, value))
        if known is not None:
            return known
        while True:
            number = self._next[kind] = self._next.get(kind, 0) + 1
            token = f"[{kind.upper()}_{number}]"
            if token not in self._whole:
                break
        self._tokens[kind, value] = token
        self.values[token] = value
        return token


def _words(text: str, value: str) -> Iterator[int]:
    """Yield where a value stands as a word, or words, of its own."""
    at = 0
    while value and (found := text.find(value, at)) >= 0:
        end = found + len(value)
        own = not (_in_word(text, found) or _in_word(text, end))
        if own:
            yield found
        at = end if own else found + 1


def _in_word(text: str, place: int) -> bool:
    """Tell whether a place is between two characters of one word."""
    if not 0 < place < len(text):
        return False
    return all(char.isalnum() or char == "_" for char in text[place - 1 : place + 1])


def split_at_tokens(text: str, known: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield a text's parts: tokens (those `known`, or of any name) and what stands between."""
    start = 0
    for found in TOKEN.finditer(text):
        if known is None or found[0] in known:
            yield text[start : found.start()]
            yield found[0]
            start = found.end()
    yield text[start:]


def holds_more(text: str, finders: Sequence[Finder], keys: Sequence[str] = ()) -> bool:
    """Tell whether a text that should have been redacted by these rules was not."""
    return any(
        find_all(finders, part) or any(next(_words(part, key), -1) >= 0 for key in keys)
        for part in split_at_tokens(text)
        if part and TOKEN.fullmatch(part) is None
    )


def put_back(text: str, values: Mapping[str, str]) -> str:
    """Return a text with the values in place of their tokens."""
    if "[" not in text:
        return text
    return TOKEN.sub(lambda found: values.get(found[0], found[0]), text)


class PutBack:
    """Puts values back in a text that comes in pieces; holds back what may begin a token."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self._held = ""

    def feed(self, text: str) -> str:
        """Take a piece; return what can be given."""
        self._held += text
        begun = self._held.rfind("[")
        cut = len(self._held)
        if begun >= 0 and cut - begun <= _LONGEST_TOKEN and _BEGUN.fullmatch(self._held, begun):
            cut = begun
        given, self._held = self._held[:cut], self._held[cut:]
        return put_back(given, self._values)

    def finish(self) -> str:
        """Return the rest."""
        given, self._held = self._held, ""
        return put_back(given, self._values)

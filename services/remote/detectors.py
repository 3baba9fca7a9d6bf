"""What should have been redacted upstream: found by patterns, and by checksums where there are.

Pure. Every detector is cheap on text without it; those with a checksum refuse a digit string by
chance less than once in ten, and only where it also has the form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from services.remote.catalog_access import DetectorName

_EMAIL = re.compile(
    r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z])"
)
# 13, 15 or 16 digits, perhaps in groups, of the networks' own ranges: ids of 17 digits and more
# would fit one of them by chance too often.
_CARD = re.compile(r"(?<![\d.])[2-6](?:[ -]?\d){12,15}(?!\d)")
_NETWORK = re.compile(
    r"4\d{12}(?:\d{3})?|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|35(?:2[89]|[3-8]\d)\d{12}|6(?:011|5\d\d|4[4-9]\d|2\d\d)\d{12}"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
# International with +, or with 00; or national in groups with a bracketed area code.
_PHONE = re.compile(
    r"(?<![\w+])(?:\+|00)[1-9](?:[ ().\-/]{0,2}\d){7,14}(?!\d)"
    r"|(?<!\w)\(\d{3}\) ?\d{3}[ .-]\d{4}(?!\d)|(?<![\d.-])\d{3}-\d{3}-\d{4}(?![\d-])"
)
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_NINO = re.compile(
    r"\b(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]\b"
)
_DNI = re.compile(r"\b(?P<start>[XYZ]|\d)(?P<rest>\d{7})-?(?P<letter>[A-Z])\b")
_HETU = re.compile(r"\b(?P<date>\d{6})[-+ABCDEFYXWVU](?P<number>\d{3})(?P<check>[0-9A-Y])\b")
_NIR = re.compile(
    r"(?<!\d)(?P<body>[12] ?\d{2} ?(?:0[1-9]|1[0-2]) ?\d[\dAB] ?\d{3} ?\d{3}) ?(?P<key>\d{2})(?!\d)"
)
_SECRETS = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{40,}\b"
    r"|\bsk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,}\b"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}\b"
    r"|\bAIza[A-Za-z0-9_-]{35}\b"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
)
_ASSIGNED = re.compile(
    r"\b(?:password|passwd|api[_-]?key|secret|token)\b[\"']?\s*[:=]\s*[\"']?[^\s\"',;]{8,}",
    re.IGNORECASE,
)
# Most texts hold none of these, and to see that is much cheaper than to search by pattern.
_MARKS = ("PRIVATE KEY", "AKIA", "ASIA", "gh", "sk-", "xox", "AIza", "eyJ")
_DIGIT = re.compile(r"\d")
_NIE_DIGITS = {"X": "0", "Y": "1", "Z": "2"}
_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
_HETU_LETTERS = "0123456789ABCDEFHJKLMNPRSTUVWXY"
_IBAN_LENGTHS = {"NO": 15, "BE": 16, "DK": 18, "FI": 18, "NL": 18, "AT": 20, "CH": 21, "DE": 22,
                 "GB": 22, "IE": 22, "ES": 24, "SE": 24, "PT": 25, "FR": 27, "IT": 27,
                 "PL": 28}  # fmt: skip


def luhn(digits: str) -> bool:
    """Whether digits pass the checksum of cards (ISO/IEC 7812-1)."""
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if position % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def mod97(iban: str) -> bool:
    """Whether an IBAN without spaces passes its checksum (ISO 13616)."""
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1


def _card(text: str) -> bool:
    for found in _CARD.finditer(text):
        digits = re.sub(r"\D", "", found[0])
        if _NETWORK.fullmatch(digits) and luhn(digits):
            return True
    return False


def _iban(text: str) -> bool:
    for found in _IBAN.finditer(text):
        # The pattern may run on into the next word: the country's own length decides.
        compact = found[0].replace(" ", "")
        length = _IBAN_LENGTHS.get(compact[:2])
        sizes: Iterable[int] = (length,) if length else range(len(compact), 14, -1)
        if any(size <= len(compact) and mod97(compact[:size]) for size in sizes):
            return True
    return False


def _national_id(text: str) -> bool:
    if _SSN.search(text) or _NINO.search(text):
        return True
    for found in _DNI.finditer(text):
        first = found["start"]
        number = int(_NIE_DIGITS.get(first, first) + found["rest"])
        if _DNI_LETTERS[number % 23] == found["letter"]:
            return True
    for found in _HETU.finditer(text):
        if _HETU_LETTERS[int(found["date"] + found["number"]) % 31] == found["check"]:
            return True
    for found in _NIR.finditer(text):
        body = found["body"].replace(" ", "").replace("2A", "19").replace("2B", "18")
        if body.isdigit() and 97 - int(body) % 97 == int(found["key"]):
            return True
    return False


def _secret(text: str) -> bool:
    if any(mark in text for mark in _MARKS) and _SECRETS.search(text):
        return True
    return (":" in text or "=" in text) and _ASSIGNED.search(text) is not None


_DETECTORS: dict[DetectorName, Callable[[str], bool]] = {
    "card": _card,
    "iban": _iban,
    "email": lambda text: "@" in text and _EMAIL.search(text) is not None,
    "phone": lambda text: _PHONE.search(text) is not None,
    "national_id": _national_id,
    "secret": _secret,
}
_OF_DIGITS = frozenset({"card", "iban", "phone", "national_id"})
NAMES: tuple[DetectorName, ...] = tuple(_DETECTORS)


def find(text: str, allow: frozenset[DetectorName] = frozenset()) -> Iterator[DetectorName]:
    """Yield the names of what a text holds; never the text found."""
    digits = _DIGIT.search(text) is not None
    for name, detect in _DETECTORS.items():
        if name in allow or (name in _OF_DIGITS and not digits):
            continue
        if detect(text):
            yield name

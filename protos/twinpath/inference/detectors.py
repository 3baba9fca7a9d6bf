"""Personal data and secrets in texts: found by patterns, and by checksums where there are.

One code for both sides of the door: the router redacts by it what a task names, the remote service
refuses by it what should have been redacted. Pure. Every detector is cheap on text without it;
those with a checksum take a digit string by chance less than once in ten, and only where it also
has the form. services/remote/providers/README.md lists the forms.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from typing import Literal

DetectorName = Literal["card", "iban", "email", "phone", "national_id", "secret"]
Span = tuple[int, int]

# How many characters a find with blanks in it may have. Without blanks it may be of any length, and
# so may a private key once it has begun.
REACH: dict[DetectorName, int] = {
    "card": 32, "iban": 64, "email": 0, "phone": 48, "national_id": 48, "secret": 96
}  # fmt: skip

# In any script: names and domains need not be ASCII.
_EMAIL = re.compile(
    r"[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}(?:[^\W\d_]{2,24}|xn--[a-z0-9-]{2,58})(?![^\W\d_])"
)
# 13, 15 or 16 digits, perhaps in groups, of the networks' own ranges: ids of 17 digits and more
# would fit one of them by chance too often.
_CARD = re.compile(r"(?<![\d.])[2-6](?:[ -]?[0-9]){12,15}(?!\d)")
_NETWORK = re.compile(
    r"4\d{12}(?:\d{3})?|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|35(?:2[89]|[3-8]\d)\d{12}|6(?:011|5\d\d|4[4-9]\d|2\d\d)\d{12}"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
# International with +, or with 00; or national in groups with a bracketed area code.
_PHONE = re.compile(
    r"(?<![\w+])(?<!\d\.)(?:\+|00)[1-9](?:[ ().\-/]{0,2}\d){7,14}(?!\d)"
    r"|(?<!\w)\(\d{3}\) ?\d{3}[ .-]\d{4}(?!\d)|(?<![\d.-])\d{3}-\d{3}-\d{4}(?![\d-])"
)
# As Germans, the French and the British write their own, from the 0 that stands for the country:
# in five pairs, or an area and the rest, parted from each other, which numbers of other kinds are
# not. (The 0 comes before what must not stand before it, so that the search goes from 0 to 0.)
_NATIONAL_PHONE = re.compile(
    r"0(?<![\w.+/-]0)[1-9]"
    r"(?:(?:[ .-]\d\d){4}|\d{1,4}\)?(?: ?/ ?|[ -])\d{2,8}(?:[ -]\d{2,5}){0,3})(?!-?\d)"
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
# Poland's begins with a day of birth, Switzerland's with the country. The checksum of the Dutch
# one takes every eleventh number: it must be written with points, or be said to be one.
_PESEL = re.compile(r"\d(?<![\d.]\d)\d(?:[02][1-9]|[13][0-2])(?:0[1-9]|[12]\d|3[01])\d{5}(?!\d)")
_BSN = re.compile(r"\d(?<![\d.]\d)\d{3}(?:\d{5}|\.\d\d\.\d{3})(?!\d)")
_BSN_WORDS, _BSN_POINTS = ("bsn", "burgerservice", "sofi"), re.compile(r"\.\d\d\.")
_BSN_NAMED = re.compile(
    r"\b(?:BSN|burgerservicenummer|sofi-?nummer)\b\W{0,4}(?:\w{1,8}\W{1,3})?$", re.IGNORECASE
)
_AHV = re.compile(r"756(?<![\d.]756)[. ]?\d{4}[. ]?\d{4}[. ]?\d\d(?!\d)")
# A private key reaches to its end, so that who cuts it out cuts all of it.
_SECRETS = re.compile(
    r"-----BEGIN (?:[A-Z]{1,16} ){0,3}PRIVATE KEY-----"
    r"(?:[\s\S]*?-----END (?:[A-Z]{1,16} ){0,3}PRIVATE KEY-----|[\s\S]*\Z)"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{40,}\b"
    r"|\bsk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,}\b"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}\b"
    r"|\bAIza[A-Za-z0-9_-]{35}\b"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
)
# A token that stands for something redacted (`password: [EMAIL_1]`) is no password.
_ASSIGNED = re.compile(
    r"\b(?:password|passwd|api[_-]?key|secret|token)\b[\"']?\s{0,8}[:=]\s{0,8}[\"']?"
    r"(?!\[[A-Z][A-Z0-9_]*_[a-z0-9]+\])[^\s\"',;]{8,}",
    re.IGNORECASE,
)
# Most texts hold none of these, and to see that is much cheaper than to search by pattern.
_MARKS = ("PRIVATE KEY", "AKIA", "ASIA", "gh", "sk-", "xox", "AIza", "eyJ")
_GROUP = re.compile(r"\d+")
_DIGIT = re.compile(r"\d")
_NIE_DIGITS = {"X": "0", "Y": "1", "Z": "2"}
_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
_HETU_LETTERS = "0123456789ABCDEFHJKLMNPRSTUVWXY"
# ISO 13616, the registry: a country's IBANs are all of one length.
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
_SHORTEST_NATIONAL, _LONGEST_NATIONAL, _LARGEST_EVEN_GROUP = 9, 12, 3
_PESEL_WEIGHTS = (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)
_BSN_WEIGHTS = (9, 8, 7, 6, 5, 4, 3, 2, -1)
_BSN_REACH = 32
_EAN_WEIGHTS = (1, 3) * 6 + (1,)
_NO_GAPS = {ord(" "): None, ord("-"): None}
_AS_NUMBERS = {ord(char): str(int(char, 36)) for char in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
# Digits twice as large, less 9 where that has two digits, both as ASCII.
_DOUBLED = bytes.maketrans(b"0123456789", b"0246813579")


def luhn(digits: str) -> bool:
    """Whether digits pass the checksum of cards (ISO/IEC 7812-1)."""
    raw = digits.encode("ascii")
    doubled = raw[-2::-2].translate(_DOUBLED)
    return (sum(raw[-1::-2]) + sum(doubled) - 48 * len(raw)) % 10 == 0


def mod97(iban: str) -> bool:
    """Whether an IBAN without spaces passes its checksum (ISO 13616)."""
    return int((iban[4:] + iban[:4]).translate(_AS_NUMBERS)) % 97 == 1


def _matches(
    pattern: re.Pattern[str], text: str, at: int, end_of: Callable[[re.Match[str]], int]
) -> Iterator[Span]:
    """Yield what fits a pattern and its checksum; `end_of` says where it ends, -1: it is none.

    After a form without its checksum the search goes on one character later, since what is meant
    may begin within it.
    """
    while (found := pattern.search(text, at)) is not None:
        end = end_of(found)
        if end > found.start():
            yield found.start(), end
            at = end
        else:
            at = found.start() + 1


def _plain(pattern: re.Pattern[str], text: str, at: int) -> Iterator[Span]:
    for found in pattern.finditer(text, at):
        yield found.span()


def _end_of_card(found: re.Match[str]) -> int:
    """The longest number that is a card's: the form may run on into the next group of digits."""
    digits = found[0].translate(_NO_GAPS)
    for size in (16, 15, 13):
        number = digits[:size]
        if len(number) == size and _NETWORK.fullmatch(number) and luhn(number):
            places = [place for place, char in enumerate(found[0]) if char not in " -"]
            # A number does not end between two digits.
            if size == len(places) or places[size] > places[size - 1] + 1:
                return found.start() + places[size - 1] + 1
    return -1


def _end_of_iban(found: re.Match[str]) -> int:
    """The form may run on into the next word: the country's own length decides."""
    length = _IBAN_LENGTHS.get(found[0][:2])
    if length is None:
        return -1
    compact = found[0].replace(" ", "")[:length]
    if len(compact) < length or not mod97(compact):
        return -1
    places = [place for place, char in enumerate(found[0]) if char != " "]
    return found.start() + places[length - 1] + 1


def _end_of_dni(found: re.Match[str]) -> int:
    number = int(_NIE_DIGITS.get(found["start"], found["start"]) + found["rest"])
    return found.end() if _DNI_LETTERS[number % 23] == found["letter"] else -1


def _end_of_hetu(found: re.Match[str]) -> int:
    number = int(found["date"] + found["number"])
    return found.end() if _HETU_LETTERS[number % 31] == found["check"] else -1


def _end_of_nir(found: re.Match[str]) -> int:
    body = found["body"].replace(" ", "").replace("2A", "19").replace("2B", "18")
    return found.end() if body.isdigit() and 97 - int(body) % 97 == int(found["key"]) else -1


def _end_of_national_phone(found: re.Match[str]) -> int:
    """From 9 to 12 digits, not all in groups of one size: codes with leading zeros are.

    The form may run on into the next numbers, over a blank.
    """
    number = found[0]
    while (digits := sum(map(str.isdigit, number))) > _LONGEST_NATIONAL:
        number, blank, _ = number.rpartition(" ")
        if not blank:
            return -1
    sizes = {len(group) for group in _GROUP.findall(number)}
    of_codes = len(sizes) == 1 and max(sizes) > _LARGEST_EVEN_GROUP
    return -1 if digits < _SHORTEST_NATIONAL or of_codes else found.start() + len(number)


def _end_of_pesel(found: re.Match[str]) -> int:
    return found.end() if _weighted(found[0], _PESEL_WEIGHTS) % 10 == 0 else -1


def _end_of_bsn(found: re.Match[str]) -> int:
    before = found.string[max(0, found.start() - _BSN_REACH) : found.start()]
    if "." not in found[0] and not _BSN_NAMED.search(before):
        return -1
    return found.end() if _weighted(found[0].replace(".", ""), _BSN_WEIGHTS) % 11 == 0 else -1


def _end_of_ahv(found: re.Match[str]) -> int:
    number = found[0].replace(".", "").replace(" ", "")
    return found.end() if _weighted(number, _EAN_WEIGHTS) % 10 == 0 else -1


def _weighted(digits: str, weights: tuple[int, ...]) -> int:
    return sum(map(operator.mul, map(int, digits), weights))


def _card(text: str, at: int) -> Iterator[Span]:
    return _matches(_CARD, text, at, _end_of_card)


def _iban(text: str, at: int) -> Iterator[Span]:
    return _matches(_IBAN, text, at, _end_of_iban)


def _email(text: str, at: int) -> Iterator[Span]:
    return _plain(_EMAIL, text, at) if "@" in text else iter(())


def _phone(text: str, at: int) -> Iterator[Span]:
    yield from _plain(_PHONE, text, at)
    yield from _matches(_NATIONAL_PHONE, text, at, _end_of_national_phone)


def _national_id(text: str, at: int) -> Iterator[Span]:
    yield from _plain(_SSN, text, at)
    yield from _plain(_NINO, text, at)
    yield from _matches(_DNI, text, at, _end_of_dni)
    yield from _matches(_HETU, text, at, _end_of_hetu)
    yield from _matches(_NIR, text, at, _end_of_nir)
    yield from _matches(_PESEL, text, at, _end_of_pesel)
    words = text.lower()
    if any(word in words for word in _BSN_WORDS) or _BSN_POINTS.search(text, at):
        yield from _matches(_BSN, text, at, _end_of_bsn)
    yield from _matches(_AHV, text, at, _end_of_ahv)


def _secret(text: str, at: int) -> Iterator[Span]:
    if any(mark in text for mark in _MARKS):
        yield from _plain(_SECRETS, text, at)
    if ":" in text or "=" in text:
        yield from _plain(_ASSIGNED, text, at)


_DETECTORS: dict[DetectorName, Callable[[str, int], Iterator[Span]]] = {
    "card": _card,
    "iban": _iban,
    "email": _email,
    "phone": _phone,
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
        if next(detect(text, 0), None) is not None:
            yield name


def spans(name: DetectorName, text: str, at: int = 0) -> Iterator[Span]:
    """Yield where one detector's finds begin and end, from `at` on; they may overlap.

    What stands before `at` counts as context: a digit there still makes the next one no beginning.
    """
    if name in _OF_DIGITS and _DIGIT.search(text, at) is None:
        return iter(())
    return _DETECTORS[name](text, at)

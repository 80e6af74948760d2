"""The numbers of an answer, exact, in the digits of any script and in LaTeX.

1/2, 0.5, 50%, \\frac{1}{2} and ½ are one number; so are 1200, 1,200 and 1.200,0. Units are ignored.
"""

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

SIGNS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{FRACTION SLASH}": "/",
        "\N{DIVISION SLASH}": "/",
        "\N{ARABIC DECIMAL SEPARATOR}": ".",
        "\N{ARABIC THOUSANDS SEPARATOR}": ",",
        "\N{ARABIC PERCENT SIGN}": "%",
        "\N{FULLWIDTH FULL STOP}": ".",
        "\N{FULLWIDTH COMMA}": ",",
        "\N{FULLWIDTH PERCENT SIGN}": "%",
        "\N{FULLWIDTH SOLIDUS}": "/",
        "\N{FULLWIDTH HYPHEN-MINUS}": "-",
        "\N{NO-BREAK SPACE}": "\N{NARROW NO-BREAK SPACE}",
        "\N{THIN SPACE}": "\N{NARROW NO-BREAK SPACE}",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    }
)
_TIMES = r"[\N{MULTIPLICATION SIGN}*\N{MIDDLE DOT}]"
LATEX: tuple[tuple[str, str], ...] = (
    (r"\\[,!;:> ]|\\quad|\\left|\\right|\\(?:text|mathrm|mathbf)\b", ""),
    (r"\{,\}", ","),
    (r"\\([%$#&_{}])", r"\1"),
    (r"(?<=\d)(?=\\[dt]?frac)", " "),
    (r"\\[dt]?frac\s*\{\s*([\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}", r"\1/\2"),
    (r"\\[dt]?frac\s*(\d)\s*(\d)", r"\1/\2"),
    (rf"\s{{0,3}}(?:\\times|\\cdot|{_TIMES})\s{{0,3}}10\s?\^\s?\{{?([+-]?\d{{1,4}})\}}?", r"e\1"),
)
"""Patterns and what replaces them, in this order."""
BOXED = re.compile(r"\\f?boxed\s*\{")
DATE = re.compile(r"(?<!\d)\d+(?:/\d+){2,}", re.ASCII)
_GROUP = r"[,'\u202f]"
_PLAIN = (
    rf"(?:\d{{1,3}}(?:\.\d{{3}}){{1,9}},\d+|\d{{1,3}}(?:{_GROUP}\d{{3}}){{1,9}}(?!\d)(?:\.\d+)?"
    r"|\d+,\d+(?![,\d])|\d+(?:\.\d+)?|\.\d+)"
)
NUMBER = re.compile(
    r"(?P<sign>(?<![\w)])-)?(?:(?P<whole>\d+)[\s\u202f]{1,3}(?=\d+/\d))?"
    rf"(?P<number>{_PLAIN})(?P<exponent>[eE][+-]?\d{{1,4}}\b)?"
    rf"(?:/(?P<divisor>{_PLAIN})(?!\d))?(?P<percent>\s?%)?",
    re.ASCII,
)
"""A minus after a word or a bracket is a subtraction."""


def fold_digits(text: str) -> str:
    """The text with the digits of every script as 0 to 9, and its signs as ASCII."""
    if text.isascii():
        return text
    folded = "".join(_to_ascii(c, before) for before, c in zip(f" {text}", text, strict=False))
    return folded.translate(SIGNS)


def _to_ascii(character: str, before: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if unicodedata.decomposition(character).startswith("<fraction>"):
        # 1½ is one and a half.
        space = " " if before.isdecimal() else ""
        return space + unicodedata.normalize("NFKC", character)
    return character


def find_last_number(text: str) -> Fraction | None:
    """The last number of the last \\boxed{}, else of the whole text; None where there is none."""
    found = _last_number(_last_boxed(text) or "")
    return _last_number(text) if found is None else found


def _last_number(text: str) -> Fraction | None:
    text = fold_digits(text)
    for pattern, replacement in LATEX:
        text = re.sub(pattern, replacement, text)
    text = DATE.sub(lambda match: match[0].replace("/", " "), text)
    matches = list(NUMBER.finditer(text))
    return _value(matches[-1]) if matches else None


def _last_boxed(text: str) -> str | None:
    """What is in the last \\boxed{}, with balanced braces."""
    starts = [match.end() for match in BOXED.finditer(text)]
    if not starts:
        return None
    depth, start = 1, starts[-1]
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return text[start:]


def _value(match: re.Match[str]) -> Fraction:
    # Decimal reads any number of digits, int only so many.
    value = Fraction(Decimal(_to_decimal(match["number"]) + (match["exponent"] or "")))
    if match["divisor"]:
        divisor = Fraction(Decimal(_to_decimal(match["divisor"])))
        # There is no number 1/0: the last one is 0 then.
        value = value / divisor if divisor else divisor
    value += Fraction(Decimal(match["whole"] or 0))
    if match["percent"]:
        value /= 100
    return -value if match["sign"] else value


def _to_decimal(number: str) -> str:
    """A number with a point before its decimals and no separators of thousands."""
    point, comma = number.rfind("."), number.rfind(",")
    is_grouped = re.fullmatch(rf"\d{{1,3}}(?:{_GROUP}\d{{3}})+(?:\.\d+)?", number) is not None
    if comma > point and not is_grouped:
        return number.replace(".", "").replace(",", ".")
    return re.sub(_GROUP, "", number)

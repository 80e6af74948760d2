"""The numbers of an answer, exact, in the digits of any script and in LaTeX.

1/2, 0.5, 50%, \\frac{1}{2} and ½ are one number; so are 1200, 1,200 and 1.200,0. Units are ignored.
"""

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

from finetune_trainer.metrics.latex import UNREADABLE, find_last_boxed, to_plain_text

SIGNS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{HYPHEN}": "-",
        "\N{FRACTION SLASH}": "/",
        "\N{DIVISION SLASH}": "/",
        "\N{ARABIC DECIMAL SEPARATOR}": ".",
        "\N{ARABIC THOUSANDS SEPARATOR}": ",",
        "\N{ARABIC PERCENT SIGN}": "%",
        "\N{THIN SPACE}": " ",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    }
)
SAME_SIGN = ("<wide>", "<small>", "<noBreak>")
"""Unicode's marks of characters that differ in width or size only, or do not break a line."""
SUPERSCRIPT = re.compile(r"(?<=\d)[⁺⁻]?[⁰¹²³⁴-⁹]+")
GROUPED = r"[1-9]\d{0,2}(?:,\d{3})+"
"""Thousands between commas."""
_LAKH = r"[1-9]\d?(?:,\d{2})+,\d{3}"
_DECIMALS = r"(?:\.\d+)?"
DECIMAL_COMMA = r"(?<![\d.,])\d+(?:\.\d{3})*,\d+(?![.,]?\d)"
_PLAIN = "|".join(
    [
        *(rf"[1-9]\d{{0,2}}(?:{mark}\d{{3}})+(?!\d)(?:[.,]\d+)?" for mark in "'_ "),
        rf"(?:{GROUPED}|{_LAKH})(?!\d){_DECIMALS}",
        r"\d{1,3}(?:\.\d{3}){2,}(?![.,]?\d)",
        DECIMAL_COMMA,
        rf"\d+{_DECIMALS}",
        r"(?<!\w)\.\d+",
    ]
)
MINUS = r"(?<![\w)\]}%‰])-"
"""A minus after a word, a bracket or a percent or per mille sign is a subtraction."""
_NUMBER = (
    rf"(?P<sign>{MINUS}(?:[$€£¥₹]\s?)?)?(?:(?P<integer>\d+)\s{{1,3}}(?=\d+/\d))?"
    rf"(?P<number>{_PLAIN})"
    # The bound of the base bounds the time that its power takes.
    r"(?:(?P<exponent>[eE][+-]?\d{1,4}\b)|(?<!\d{20})\^(?P<power>[+-]?\d{1,3})(?!\.?\d))?"
    rf"(?:\s?/\s?(?P<divisor>-?(?:{_PLAIN})))?(?P<percent>\s?[%‰])?"
)
_NO_NUMBER = (
    r"(?<!\d)(?:\d+(?:/\d+){2,}|\d{4}-\d\d?-\d\d?(?!\d)|\d\d?-\d\d?-\d{4}(?!\d)"
    r"|\d[\d.,]{0,20}(?::\d[\d.,]{0,20})+|(?!\d{1,3}(?:\.\d{3}){2,}(?!\.?\d))\d+(?:\.\d+){2,})"
)
"""Dates, times, ratios and versions."""
TERM = re.compile(rf"{_NO_NUMBER}|{_NUMBER}|(?P<operator>{UNREADABLE})", re.ASCII)
CONNECTION = re.compile(
    r"(?>\{[^{}]*\}|[-+*/_(){}\[\]\d ]|[.,](?=\d)|\\(?:times|cdot|div)\b"
    r"|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))*+"
)
"""What is between the terms of one expression."""
BRACKETED = re.compile(r"[(\[{][^()\[\]{}]*[)\]}]")
THOUSANDS = re.compile(rf"(?<![\d.,]){GROUPED}(?![\d,])", re.ASCII)
_PERCENT_FIRST = re.compile(r"(?<![\w)\]}%])(?<!\d\s)%\s?(\d+(?:[.,]\d+)*)(?![\w%])", re.ASCII)
_COMMA = re.compile(rf"{THOUSANDS.pattern}|(?<=\d),(?=[-+.]?\d)", re.ASCII)


def fold_digits(text: str) -> str:
    """The text with the digits of every script as 0 to 9, a power such as 10² as 10^2, and its
    signs as ASCII."""
    if text.isascii():
        return text
    text = SUPERSCRIPT.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]), text)
    folded = "".join(_to_ascii(c, before) for before, c in zip(f" {text}", text, strict=False))
    return folded.translate(SIGNS)


def _to_ascii(character: str, before: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    kind = unicodedata.decomposition(character)
    if kind.startswith("<fraction>"):
        # 1½ is one and a half.
        space = " " if before.isdecimal() else ""
        return space + unicodedata.normalize("NFKC", character)
    return unicodedata.normalize("NFKC", character) if kind.startswith(SAME_SIGN) else character


def move_percent_signs(text: str) -> str:
    """The text with 50% for %50, as Turkish and Basque write it."""
    return _PERCENT_FIRST.sub(r"\1%", text)


def separate_lists(text: str) -> str:
    """The text with a space after each comma between the numbers of a bracket: (3, 4) for (3,4).

    A comma between thousands stays."""
    return BRACKETED.sub(
        lambda bracket: _COMMA.sub(lambda match: match[0] if match[0] != "," else ", ", bracket[0]),
        text,
    )


def find_last_number(text: str) -> Fraction | None:
    """The last number of the last \\boxed{}, else of the text; None where there is none, and
    where it is a part of an expression, a date, a time or a ratio."""
    term = _last_term(find_last_boxed(text) or "") or _last_term(text)
    return _value(term) if term else None


def _last_term(text: str) -> re.Match[str] | None:
    """The last number, or the operator or the date that is read instead of it."""
    text = separate_lists(move_percent_signs(to_plain_text(fold_digits(text))))
    terms = list(TERM.finditer(text))
    operators = [term for term in terms if term["operator"]]
    if operators and terms[-1] is not operators[-1]:
        between = CONNECTION.match(text, operators[-1].end(), terms[-1].start())
        if between and between.end() == terms[-1].start():
            return operators[-1]
    return terms[-1] if terms else None


def _value(term: re.Match[str]) -> Fraction | None:
    if not term["number"]:
        return None
    try:
        # Decimal reads any number of digits, int only so many.
        value = Fraction(Decimal(_to_decimal(term["number"]) + (term["exponent"] or "")))
        value **= int(term["power"] or 1)
        value /= Fraction(Decimal(_to_decimal(term["divisor"] or "1")))
    except ZeroDivisionError:
        return None
    value += Fraction(Decimal(term["integer"] or 0))
    if term["percent"]:
        value /= 1000 if "‰" in term["percent"] else 100
    return -value if term["sign"] else value


def _to_decimal(number: str) -> str:
    """A number with a point before its decimals and no separators of thousands."""
    number = re.sub("['_ ]", "", number)
    if re.fullmatch(rf"-?(?:{GROUPED}|{_LAKH}){_DECIMALS}", number):
        return number.replace(",", "")
    if "," in number or number.count(".") > 1:
        return number.replace(".", "").replace(",", ".")
    return number

"""LaTeX of answers, as plain text where it is a number."""

import re

_COMMANDS = (
    r"[dtc]?frac|over(?:line)?|bar|dot|sqrt|pi|infty|pm|mp|[dt]?binom|choose|log|ln|lg|exp"
    r"|(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|sum|prod|int|lim|max|min|gcd|lcm|det"
    r"|[lr](?:floor|ceil)|[pb]?mod"
)
UNREADABLE = (
    rf"\\(?:{_COMMANDS})(?![A-Za-z])|[\^√∛∜π∞±∑∏∫]|(?<=\w)_(?=\{{?\d)"
    r"|(?<=\d)[ixyz](?![A-Za-z\d])|(?<![A-Za-z])[xyz](?=\s?[-+*/]\s?\d)"
)
"""What makes an expression more than a number: a function, a constant, an index, an unknown."""
_TIMES = r"(?:\\times|\\cdot|[\N{MULTIPLICATION SIGN}\N{MIDDLE DOT}*x])"
_UNIT_POWER = r"\s?\^\s?\{?-?[1-3](?!\.?\d)\}?"
REPLACEMENTS: tuple[tuple[str, str], ...] = (
    # A command does not join the text after it: 2\pi\text{cm}.
    (r"(?<=[A-Za-z])(?=\\(?:text|math)[a-z]*\s?\{[A-Za-z])", " "),
    # The power of a unit: \text{m}^2, cm^2, m/s^2.
    (rf"\\(?:text|mathrm|mathbf)\s?\{{([^{{}}]*[A-Za-z])\s?\}}{_UNIT_POWER}", r"\1"),
    (r"\\(?:text|math)[a-z]*\s?\{([^{}]*)\}", r"\1"),
    (
        rf"((?<![\\A-Za-z])(?![abcnxyz]+\s?\^)[A-Za-z]{{2,}}|(?:(?<=\d)|(?<=\d )|(?<=/))[ms])"
        rf"{_UNIT_POWER}",
        r"\1",
    ),
    # \approx.5 and \text{about}\ .5 are a half; \pi\,cm is not \picm.
    (r"(\\[A-Za-z]+)(?=\.\d)|(?<=[A-Za-z ])\\[,!;:> ](?=\.\d|[A-Za-z])", r"\1 "),
    # Spaces and sizes of LaTeX, degrees and the endings of ordinals.
    (r"\\[,!;:> ]|\\left|\\right|\^\s?\{?\s?(?:\\circ|st|nd|rd|th)\b\s?\}?", ""),
    (r"\s?\\quad\s?", " "),
    (r"\{,\}", ","),
    (r"\\([%$#&_{}])", r"\1"),
    # 3\frac{1}{2} is three and a half.
    (r"(?<=\d)(?=\\[dtc]?frac)", " "),
    (r"\s?\^\s?\{\s?([+-]?\d{1,4})\s?\}", r"^\1"),
    # 1.5 \times 10^3 is 1.5e3.
    (rf"(?<=\d)\s{{0,3}}{_TIMES}\s{{0,3}}10\s?\^([+-]?\d{{1,4}})", r"e\1"),
    # A minus after an equals sign is a sign: x = - 5.
    (r"(=\s{0,3})-\s", r"\1-"),
)
"""Patterns and what replaces them, in this order."""
_PART = r"\s*(?:\{\s*([+-]?[\d.,]+)\s*\}|(\d))"
FRACTION = re.compile(rf"(-?)\\[dtc]?frac{_PART}{_PART}", re.ASCII)
BOXED = re.compile(r"\\(?:f?boxed|fbox)\s*\{")


def to_plain_text(text: str) -> str:
    """The text with fractions, powers of ten and signs of LaTeX as 3/4, e-3 and %; an expression
    that is not a number stays as it is."""
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    return FRACTION.sub(_to_division, text)


def _to_division(match: re.Match[str]) -> str:
    sign, *parts = match.groups(default="")
    numerator, denominator = parts[0] + parts[1], parts[2] + parts[3]
    is_negative = (sign + numerator + denominator).count("-") % 2 == 1
    # 5 - (-3/4) stays a sum; a minus from inside the fraction is no subtraction.
    before = ("-" if is_negative else "+") if sign else (" -" if is_negative else "")
    return f"{before}{numerator.lstrip('+-')}/{denominator.lstrip('+-')}"


def find_last_boxed(text: str) -> str | None:
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

"""The source of a chat template: its {% generation %} marks, and the variables that it reads."""

from __future__ import annotations

import re

_MARK = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")


def has_marks(template: str) -> bool:
    """Whether the template marks what the assistant says."""
    return bool(_MARK.search(template))


def read_variables(template: str) -> set[str]:
    """The variables that a renderer can set; the template must have no syntax error."""
    from jinja2 import Environment, meta

    # The marks are an extension of transformers and read nothing.
    parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_MARK.sub("", template))
    return set(meta.find_undeclared_variables(parsed))

"""Which answers count as the same text: the values of evaluation.normalization.

- None: only equal characters.
- Whitespace: white space at the ends and its kind and amount do not count.
- Text: also case, punctuation and compatibility forms do not count; see exact_match.
- SQuAD: also the words a, an and the do not count, and all punctuation is dropped without leaving a
  space (Rajpurkar et al. 2016).
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping

from finetune_api.evaluation import Normalization

from finetune_trainer.metrics.exact_match import exact_match, normalise_text

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _squad(text: str) -> str:
    return _squeeze(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)))


NORMALIZATIONS: Mapping[Normalization, Callable[[str], str]] = {
    "None": str,
    "Whitespace": _squeeze,
    "Text": normalise_text,
    "SQuAD": _squad,
}


def is_same_text(answer: str, reference: str, normalization: Normalization) -> bool:
    """Whether both are equal after normalisation."""
    if normalization == "Text":
        # With a rule of its own for references of punctuation only.
        return exact_match(answer, reference) > 0
    normalise = NORMALIZATIONS[normalization]
    return normalise(answer) == normalise(reference)

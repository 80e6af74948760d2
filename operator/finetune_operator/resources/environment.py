"""The environment of containers: the operator's own variables, and those of the pool."""

from collections.abc import Mapping

from finetune_operator.decision import Manifest
from finetune_operator.resources.scheduling import Pool


def build_pool_environment(fixed: Mapping[str, str], pool: Pool) -> list[Manifest]:
    """The field env. The pool's variables win, because the platform team knows its network and its
    cores."""
    variables = {**fixed, **{each.name: each.value for each in pool.env}}
    return [{"name": name, "value": value} for name, value in variables.items()]

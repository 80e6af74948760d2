"""One reason and one group of reasons, as the rows and sections of docs/reasons.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """One reason in CamelCase."""

    name: str
    where: str
    """Stage that fails, or kind of the object that waits."""
    meaning: str
    remedy: str
    """What the user does; empty where there is nothing to do."""
    from_kubernetes: bool = False
    """Whether the operator copies the reason from the status of a pod or a Deployment."""


@dataclass(frozen=True)
class Group:
    """Reasons that appear in the same places."""

    title: str
    intro: str
    """Where the reasons of the group appear, and what happens next, in Markdown."""
    reasons: tuple[Reason, ...]


JOB, ENDPOINT, BOTH = "FineTuneJob", "ModelEndpoint", "both"
PROFILE, ALL_KINDS = "AcceleratorProfile", "all kinds"
ANY = "any stage"

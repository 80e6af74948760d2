"""Every reason that a user can meet in a condition, an event or a failure, and its remedy.

docs/reasons.md is generated from these tables: one file per group of reasons, and for the group of
invalid input one per subject. The test in tests/unit/api/test_reasons.py compares them with the
reasons that the operator and the trainer produce, so a new reason needs a row here.
"""

from finetune_api.reasons.attempt_failed import FAILED
from finetune_api.reasons.attempt_interrupted import DISRUPTED
from finetune_api.reasons.events import EVENTS
from finetune_api.reasons.invalid_input import INPUT
from finetune_api.reasons.revision_failed import REVISION
from finetune_api.reasons.states import STATES
from finetune_api.reasons.waiting import WAITING

GROUPS = (WAITING, INPUT, FAILED, DISRUPTED, REVISION, STATES, EVENTS)
REASONS = tuple(reason for group in GROUPS for reason in group.reasons)

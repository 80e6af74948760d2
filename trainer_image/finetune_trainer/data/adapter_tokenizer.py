"""The tokenizer in the folder of an adapter, which must be that of its base model."""

from pathlib import Path

from finetune_api.finetunejob import ModelSource

from finetune_trainer.data.tokenizer_files import read_tokenizer
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.adapter_files import unsupported_adapter
from finetune_trainer.sources.model_files import TOKENIZER_FILES

LISTED_TOKENS = 3
"""Tokens in an error."""


def check_adapter_tokenizer(folder: Path, model_folder: Path, model: ModelSource, uri: str) -> None:
    """Raise UserError AdapterUnsupported where the adapter in `folder` was trained on other tokens
    or in another chat template than the job has; a folder without a tokenizer is accepted.

    `uri`: the public address of the adapter, for messages.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return
    try:
        adapter = read_tokenizer(folder)
    except UserError as error:
        raise unsupported_adapter(
            uri,
            f"its tokenizer cannot be read ({error.failure.message.rstrip('.')})",
            "If it is the tokenizer of the base model, remove its files from the adapter's folder.",
        ) from None
    base = read_tokenizer(model_folder)
    vocabulary = base.get_vocab()
    other = sorted(
        token for token, index in adapter.get_vocab().items() if vocabulary.get(token) != index
    )
    if other:
        names = ", ".join(map(repr, other[:LISTED_TOKENS]))
        more = f" and {len(other) - LISTED_TOKENS} more" if len(other) > LISTED_TOKENS else ""
        raise unsupported_adapter(
            uri,
            f"its tokenizer has {names}{more}, which the model's tokenizer does not have, or has "
            "with another id",
            "Use the base model of the adapter. If the adapter needs none of these tokens, remove "
            "the tokenizer's files from its folder.",
        )
    chosen = model.tokenizer.chat_template if model.tokenizer else None
    if chosen is None and adapter.chat_template not in (None, base.chat_template):
        raise unsupported_adapter(
            uri,
            "its folder has another chat template than the model, so it was probably trained in "
            "that template",
            "Set model.tokenizer.chatTemplate to the template in the adapter's folder, or to the "
            "model's own.",
        )

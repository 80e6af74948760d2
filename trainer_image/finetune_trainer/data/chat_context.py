"""What a chat template gets besides the turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_trainer.data.tool_calls import Json


@dataclass(frozen=True)
class ChatContext:
    """Tools and documents of one row."""

    tools: tuple[Json, ...] = ()
    """Descriptions of tools, as finetune_trainer.data.tool_calls writes them."""
    documents: tuple[Json, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The arguments of apply_chat_template, without empty ones."""
        found = {"tools": list(self.tools), "documents": list(self.documents)}
        return {name: value for name, value in found.items() if value}


NO_CONTEXT = ChatContext()

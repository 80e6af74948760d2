"""Opens the source of an address: one case per scheme."""

from __future__ import annotations

from pathlib import Path

from finetune_trainer.sources.address import Address
from finetune_trainer.sources.base import Source
from finetune_trainer.sources.claim import open_claim
from finetune_trainer.sources.hub import open_hub
from finetune_trainer.sources.object_store import open_gs, open_https, open_s3


def open_source(address: Address, volumes: Path) -> Source:
    """List what is at `address`; claims are mounted below `volumes`.

    Raises UserError where the address can never work and RetryableError where it may later.
    """
    match address.scheme:
        case "hf":
            return open_hub(address)
        case "s3":
            return open_s3(address)
        case "gs":
            return open_gs(address)
        case "https":
            return open_https(address)
        case "pvc":
            return open_claim(address, volumes)
        case other:
            raise address.bad_address(
                f"{other}:// is not supported", "Use hf, s3, gs, https or pvc."
            )

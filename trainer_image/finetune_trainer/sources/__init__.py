"""Where models and data come from: hf://, s3://, gs://, https:// and pvc:// addresses.

`open_source` turns an address into a listing (names, sizes, tags that change with the content)
and a way to fetch one file of it. What the files contain is the business of `snapshot`, which
downloads a model into the cache, and of `dataset_files`. Every failure of a source becomes a typed
error: a UserError (missing, access denied) or a RetryableError. Read `address` and `base` first.
"""

from finetune_trainer.sources.address import Address
from finetune_trainer.sources.base import Source, SourceFile
from finetune_trainer.sources.credentials import Credentials, take_credentials
from finetune_trainer.sources.source_factory import open_source

__all__ = [
    "Address",
    "Credentials",
    "Source",
    "SourceFile",
    "open_source",
    "take_credentials",
]

"""Why a job fails for good: its addresses, and what is there."""

from finetune_api.reasons.reason import Reason

ADDRESSES = (
    Reason(
        "AccessDenied",
        "prepare",
        "The credentials give no read access to an address.",
        "Put credentials with read access into a Secret and name it in `credentialsSecretRef`.",
    ),
    Reason(
        "BadAddress",
        "prepare",
        "An address has a form that its source does not support.",
        "Correct the `uri` that the message names.",
    ),
    Reason(
        "BrokenArchive",
        "prepare",
        "A model archive cannot be unpacked.",
        "Pack it again as .tar, .tar.gz or .zip, and check that the upload is complete.",
    ),
    Reason(
        "DatasetNotFound",
        "prepare",
        "There is no data set at the address.",
        "Correct the `uri`; a private data set needs a `credentialsSecretRef`.",
    ),
    Reason(
        "DigestMismatch",
        "prepare",
        "The content of a data source is not the one that its `sha256` pins.",
        "Restore the files, or set `sha256` to the digest in the message.",
    ),
    Reason(
        "ForbiddenAddress",
        "prepare",
        "An address leads to a metadata service, a link-local address or the pod itself.",
        "Name another server; check redirects, DNS records and endpoints in Secrets.",
    ),
    Reason(
        "ModelNotFound",
        "prepare",
        "There is no model, or no adapter, at the address.",
        "Correct the `uri` of the field that the message names; what is private needs a "
        "`credentialsSecretRef`.",
    ),
    Reason(
        "NotAnArtifact",
        "prepare",
        "A `pvc://` address of the workspace is not that of an artifact.",
        "Use `status.artifact.uri` of a FineTuneJob, or a claim of your own.",
    ),
    Reason(
        "PathEscape",
        "prepare",
        "A path or a link leads out of its folder or claim.",
        "Use plain relative paths, and replace the link by its file.",
    ),
    Reason(
        "RevisionNotFound",
        "prepare",
        "The hf:// address has no such revision.",
        "Set `revision` to a branch, tag or commit that exists.",
    ),
    Reason(
        "UnsafeArchive",
        "prepare",
        "A model archive has links, devices or paths that lead out of it.",
        "Pack only plain files with relative names.",
    ),
    Reason(
        "VersionNotFound",
        "prepare",
        "The s3:// or gs:// object has no such version, or the bucket has no versions.",
        "Set `version` of the source to one that the bucket has, or pin the content with `sha256`.",
    ),
)

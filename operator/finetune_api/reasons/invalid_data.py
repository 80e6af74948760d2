"""Why a job fails for good: the files, rows and columns of its data."""

from finetune_api.reasons.reason import Reason

DATA = (
    Reason(
        "BadConversation",
        "prepare",
        "The turns of a conversation cannot be learned from: order, roles, tools, parts that "
        "are not text, or the chat template refuses them.",
        "Correct the row; the message says what is wrong.",
    ),
    Reason(
        "BadHoldout",
        "prepare",
        "`dataset.holdout` leaves no row to train on, or none to evaluate on.",
        "Change the percentage, or set `dataset.validation`.",
    ),
    Reason(
        "BadTools",
        "prepare",
        "A description of a tool, or a call of one, has no name or no arguments that are JSON.",
        "Correct the row; the message shows the form.",
    ),
    Reason(
        "BrokenFile",
        "prepare",
        "A data file cannot be read, is a link to a missing file, or the README.md or the "
        "state.json that declares the files is malformed.",
        "Upload the file again, or correct it as the message describes.",
    ),
    Reason(
        "BrokenRow",
        "prepare",
        "A row is not valid in the format of its file.",
        "Correct the file at the line in the message.",
    ),
    Reason(
        "ConfigNotChosen",
        "prepare",
        "A data set declares several configurations and no default, or not the one of `config`.",
        "Set `config` of the source to one that the message lists.",
    ),
    Reason(
        "EmptyDataset",
        "prepare, train",
        "The training data has no row, or none is left after preparation.",
        "Check the upload and `dataset.train`; add rows, or hold out fewer.",
    ),
    Reason(
        "EmptyText",
        "prepare",
        "A text of a row is empty.",
        "Fill it, or remove the row.",
    ),
    Reason(
        "EqualAnswers",
        "prepare",
        "Both answers of a preference are the same, or the same up to "
        "`training.maxSequenceLength`.",
        "Remove the row, or raise `training.maxSequenceLength`.",
    ),
    Reason(
        "MissingColumn",
        "prepare",
        "A row lacks a column that its format needs.",
        "Name your columns in `dataset.columns`, or rename them.",
    ),
    Reason(
        "MixedFormats",
        "prepare",
        "The sources of the job have different formats.",
        "Give all sources one format, or set `dataset.format` and `dataset.columns`.",
    ),
    Reason(
        "NoMatchingFiles",
        "prepare",
        "A data source has no files of the split or of the pattern in `files`, lacks a shard, "
        "or has names from which its splits are not clear.",
        "Set `split` or `files` of the source as the message describes.",
    ),
    Reason(
        "NothingToLearn",
        "prepare",
        "No token of a row belongs to an answer.",
        "Remove the row.",
    ),
    Reason(
        "NotRows",
        "prepare",
        "The content of a data file does not fit its name: it is a pointer of Git LFS, a web "
        "page or an archive.",
        "Upload the file of rows itself, as the message describes.",
    ),
    Reason(
        "NotUTF8",
        "prepare",
        "A file, its name or a text is not UTF-8.",
        "Save the file as UTF-8, or rename it.",
    ),
    Reason(
        "PromptTooLong",
        "prepare",
        "A prompt leaves no tokens for the answer.",
        "Shorten the prompt, remove the row, or raise `training.maxSequenceLength`.",
    ),
    Reason(
        "ReferenceMissing",
        "prepare",
        "A prompt has no reference, which a reward function compares with.",
        "Name its column in `dataset.columns.reference`, or use other rewards.",
    ),
    Reason(
        "RowTooLong",
        "prepare",
        "A row has more tokens than a sequence, and `dataset.longRows` is `Fail`.",
        "Raise `training.maxSequenceLength`, or set `dataset.longRows` to `Truncate` or `Skip`.",
    ),
    Reason(
        "SourceWithoutShare",
        "prepare",
        "A source of the mixture would give no example to an epoch.",
        "Raise its weight or `dataset.temperature`, or leave the source out.",
    ),
    Reason(
        "TooFewRows",
        "prepare",
        "The data has too few distinct rows to train and evaluate on.",
        "Add rows, or give validation data that is not part of the training data.",
    ),
    Reason(
        "TooManyInvalidRows",
        "prepare",
        "More rows cannot be used than `dataset.invalidRows.max` allows.",
        "Correct the rows, or raise `dataset.invalidRows.max`.",
    ),
    Reason(
        "UnsupportedFormat",
        "prepare",
        "A data source has no file of rows, has files in a format that is not read, or mixes "
        "text files with files of other formats.",
        "Use .jsonl, .json, .csv, .tsv or .txt, each also with .gz or .zst, or .parquet or "
        ".arrow; set `files` of the source to leave other files out.",
    ),
    Reason(
        "UnusableColumn",
        "prepare",
        "A column means something that the format or the model cannot use, such as images.",
        "Remove the column, name it in `dataset.columns`, or leave it out with "
        "`dataset.ignoreColumns`.",
    ),
    Reason(
        "UnusedColumn",
        "prepare",
        "`dataset.columns` names a column that the format does not have.",
        "Leave it out, or set `dataset.format`.",
    ),
    Reason(
        "WrongType",
        "prepare",
        "A value of a row has another type than its column needs.",
        "Correct the row; the message says what is expected.",
    ),
)

"""The life of a dataset row, from a file to a global batch, in the order of the modules.

- source: one entry of dataset.train or dataset.validation (finetune_trainer.sources)
- record: a row as the file has it, with file and line (file_formats; read_records reads all
  sources of a job)
- sample: the record as its objective learns from it (samples), by the column mapping of its source
  (columns) and the turns of its conversation (messages); each is on one side of the split (split)
  and is taken by an epoch as often as the mixture says (mixture)
- tokenized sample: its tokens and labels (tokenize), through the job's tokenizer (tokenizer) and
  chat template (chat_template)
- sequence: the tokenized samples that training sees as one row of a batch (packing,
  packing_support), in the token store (token_store)
- global batch and micro-batch: the sequences of one optimizer step over all ranks, and of one
  forward pass of one rank (sampler; finetune_trainer.objectives.collate makes tensors of them)

A row that cannot be used raises RowError at the stage that finds it, and the error reports its file
and line (row_errors). pipeline runs the stages up to the sequences; prepared_dataset describes the
folder that it writes, which is all that training sees.
"""

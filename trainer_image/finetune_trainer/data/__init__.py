"""From files of rows to tokens that a model learns from.

rows (files to records with their line) -> layout and conversation (columns to turns) -> units ->
split -> mixture -> encoding through chat and tokenizer -> packing -> store. Each step is a module,
knows nothing of the next, and is pure but for the first and the last; reading, making and dataset
put them together. The folder that dataset writes is all that training sees.
"""

"""From files of rows to tokens that a model learns from.

rows (files to records with their line) -> conversation (records to turns) -> split -> chat (turns
to tokens and labels) -> packing -> store. Each step is a module, knows nothing of the next, and
is pure but for the first and the last. The token store is all that training sees.
"""

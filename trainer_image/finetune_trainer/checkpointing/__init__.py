"""Checkpoints of a training run and the weights that it leaves behind.

`saver` saves: it writes checkpoints alongside training. `checkpoint_folder` defines which
checkpoints are complete, `restore` restores the newest or the best one, and `retention` removes
those that are no longer kept. `sharded_format` is the file format: one safetensors file per rank.
`final_output` gathers the trained weights after the last step for the evaluate and export stages.
`artifact` publishes the folder that the export stage makes from them.
"""

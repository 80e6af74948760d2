"""From facts about model, data and pool to a plan of training, or a typed refusal. Pure."""

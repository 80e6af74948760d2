"""From facts about model, data and pool to a training plan, or to a typed refusal. Pure."""

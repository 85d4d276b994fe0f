"""Reading checkpoints of a run: opened lazily, held to numbers, checked for damage."""

"""What a run will need, before it runs: memory, costs, and what a target means."""

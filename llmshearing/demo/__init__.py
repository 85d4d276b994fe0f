"""The whole way on one machine: a source, data, pruning, continued pre-training, and measurements."""

"""Data before training: from texts to MDS shards of packed tokens."""

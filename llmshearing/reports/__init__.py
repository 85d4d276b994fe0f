"""Pages on runs: what the metrics say, drawn and put into words."""

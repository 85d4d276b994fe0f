"""One thin module per command: arguments in, library calls, lines out."""

"""A teacher's predictions beside the data: run once, kept in a few bytes per token, used in any number of runs."""

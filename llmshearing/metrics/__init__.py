"""What a run logs, and reading it again: names, the file, series and last losses."""

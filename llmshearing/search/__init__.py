"""Which shape to ask for: candidates of one budget, cut, compared, and the best of them trained for a few steps."""

"""Data while training: a mixture of domains whose weights may change after every round."""

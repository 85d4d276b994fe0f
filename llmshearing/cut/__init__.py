"""A smaller model from a folder and some text, in one shot."""

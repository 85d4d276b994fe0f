"""Small rules that are used everywhere and import nothing of ours."""

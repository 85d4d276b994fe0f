"""Checks of a run's YAML before anything is built, and what prepares the process."""

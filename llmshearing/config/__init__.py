"""Checks of a run's YAML before anything is built, and what prepares the process.

Unless it is said to be that of a model, a ``config`` here is a whole llm-foundry training configuration.
"""

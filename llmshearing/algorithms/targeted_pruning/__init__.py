"""Targeted structured pruning: learned masks under constraints, finished at exactly the target shape."""

from llmshearing.algorithms.targeted_pruning.targeted_pruning import TargetedPruning, find_pruning

__all__ = ['TargetedPruning', 'find_pruning']

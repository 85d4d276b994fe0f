"""Masks: which units stay. Importing this package registers its learners and its scoring methods."""

from llmshearing.masks import lagrangian, one_shot, progressive, score_methods

__all__ = ['lagrangian', 'one_shot', 'progressive', 'score_methods']

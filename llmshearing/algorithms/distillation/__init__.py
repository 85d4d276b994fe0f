"""Knowledge distillation: a frozen teacher's next-token distribution beside the language-model loss."""

from llmshearing.algorithms.distillation.distillation import Distillation

__all__ = ['Distillation']

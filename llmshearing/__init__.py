"""Prune a pre-trained Hugging Face decoder to exactly a target shape and continue its pre-training, on Composer."""

__all__ = ['__version__']

__version__ = '0.1.0'

"""Algorithms of Composer: targeted pruning and distillation."""

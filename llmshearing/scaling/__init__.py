"""Laws of loss: reference losses of a target, and how many tokens a pruned model needs."""

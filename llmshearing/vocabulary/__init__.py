"""A source with fewer tokens: which ones stay, a tokenizer and a model that have no others, and the proof."""

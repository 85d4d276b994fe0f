"""From masks and checkpoints to stock Hugging Face folders, written, checked and described."""

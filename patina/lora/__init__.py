"""LoRA: put it on a model, and read, write and verify it as the files that other programs load."""

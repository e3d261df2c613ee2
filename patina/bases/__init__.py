"""Base models: what a path or a name stands for, and how it becomes a pipeline."""

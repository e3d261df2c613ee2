"""Patina: trains LoRA adapters for image and language models."""

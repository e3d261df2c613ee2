"""Blocks of our own for frozen denoisers and decoders, on kernels of our own; Triton is imported where they run."""

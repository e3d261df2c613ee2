"""Kernels of our own for a frozen denoiser, and the blocks that use them; imported only where there is Triton."""

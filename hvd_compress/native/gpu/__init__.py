"""Triton kernels for GPUs, which give the bytes that the CPU's kernels give."""

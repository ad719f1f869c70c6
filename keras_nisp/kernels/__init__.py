"""Kernels that read an input of their layer as it comes in: what they read, and fits of them."""

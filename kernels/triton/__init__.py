"""Triton kernels, their launch code, and what the interpreter needs to check them.  ``import triton`` in here is the real one."""

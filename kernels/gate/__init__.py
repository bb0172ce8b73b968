"""The code gate: every Triton kernel × configuration compiled for every target without a GPU, and what came of it held to rules.

``python -m kernels.gate`` prints the table.  A kernel declares itself with an ``Entry``: see `kernels.gate.entries`.
"""

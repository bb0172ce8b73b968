"""A probe module that cannot be imported."""

raise ZeroDivisionError("planned")

"""The errors a person is told in one line."""


class UsageError(ValueError):
    """The user's mistake: one line, exit code 2."""

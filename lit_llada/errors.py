"""The one exception for a user's mistake: a single line that names the thing and says what to change."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input, found early. The command line prints it as ``error: ...`` and exits with status 2."""

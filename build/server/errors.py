"""What goes wrong with a server, for a person to act on."""

from __future__ import annotations

from ensemble.errors import LastrowError


class ServerError(LastrowError):
    """tritonserver cannot be found, cannot run here, or did not become ready."""

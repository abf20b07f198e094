"""Errors that a person can act on: what was given, where, what is allowed, what to do."""


class LastrowError(Exception):
    """Base of every error this project raises on purpose. Command lines print it as one line, without a traceback."""

    exit_code = 1


class SpecError(LastrowError):
    """The spec is missing, is not TOML, or says something that cannot be served."""


class HistoryError(LastrowError):
    """A learner's history is not one: bad ids, bad responses, unequal lengths, an unreadable file."""


class ServingError(LastrowError):
    """The server could not be asked, or answered with an error. `status` is gRPC's name for it, e.g. "UNAVAILABLE"."""

    def __init__(self, message: str, status: str = "UNKNOWN") -> None:
        super().__init__(message)
        self.status = status


class InvalidRequestError(ServingError):
    """The request is malformed, by the server's word or the client's own. Sending it again unchanged cannot succeed."""


class DeadlineExceededError(ServingError):
    """No answer arrived within the deadline."""


class UnavailableError(ServingError):
    """The server cannot be reached, is not ready, or sheds load; every allowed retry was used."""


class ClosedClientError(ServingError):
    """The client was closed, before the call or while it was under way; a new one is needed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "CANCELLED")


class VocabularyError(LastrowError):
    """Names and numbers of problems do not fit each other or the model."""

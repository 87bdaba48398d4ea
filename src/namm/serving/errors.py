"""What a request may get instead of an answer, in the shape that clients of OpenAI's API read."""

from __future__ import annotations

from typing import Any


class ServingError(Exception):
    """One sentence for the client.

    Attributes:
        status: of HTTP.
        message: what is wrong and what to do.
        code: for programs.
        param: field of the request that is to blame.
        retry_after: seconds after which it is worth another try.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    @property
    def kind(self) -> str:
        """OpenAI's word for the class of error."""
        known = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return known.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def unknown_document(document: str) -> ServingError:
    """There is none of this id."""
    return ServingError(404, f"there is no document {document[:64]!r}: list them, or read it", "document_not_found")


def stopping() -> ServingError:
    """The server is going down."""
    return ServingError(503, "the server is stopping: try again when it is back", "stopping", retry_after=10)


def sentence(error: Exception) -> ServingError:
    """What went wrong while a request was served: its own sentence where it is the request's or the model's fault."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "DefaultCPU" in str(error):
        return ServingError(503, "the machine is out of memory: lower --cache-bytes", "out_of_memory", retry_after=10)
    if isinstance(error, OSError):  # whose sentence names a path, which is nobody's business
        return ServingError(500, "a document's file can't be read or written: see the server's log", "files")
    if isinstance(error, ValueError) and str(error):
        return ServingError(500, str(error), "failed")
    return ServingError(500, f"this is a bug in namm ({type(error).__name__}: {error})", "bug")

"""Why a request to an object store failed, as a person should read it: one clause, and what to do.

What a server answers is read for its status and for one word, the error's code; the rest of it is never repeated, for it may hold
what was sent: keys, tokens, signatures.
"""

from __future__ import annotations

import errno
import re
from typing import Any, NamedTuple

from storage_io.errors import StorageError

_STATUS = re.compile(r"status code: ([0-9]{3})\b")
_CODE = re.compile(r"<Code>([A-Za-z]{1,40})</Code>")
_KIND = re.compile(r"HttpError \{\s+kind: ([A-Za-z]+)")
_RANGE = re.compile(r"Requested ([0-9]+\.\.[0-9]+), got ([0-9]+\.\.[0-9]+)")
_KEYS = "look at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or at the profile in ~/.aws"
_REGION = "the bucket is in another region: set AWS_DEFAULT_REGION"
_RENEW = "the session token has expired or is not valid: get a new one"

_CODES = {
    "NoSuchBucket": "there is no such bucket: make it, or name another with --target",
    "InvalidBucketName": "there can be no bucket of this name",
    "InvalidAccessKeyId": f"the endpoint does not know the access key: {_KEYS}",
    "SignatureDoesNotMatch": f"the secret key does not belong to the access key: {_KEYS}",
    "RequestTimeTooSkewed": "the clock of this machine is off by more than the endpoint allows: set it",
    "ExpiredToken": _RENEW,
    "InvalidToken": _RENEW,
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "IllegalLocationConstraintException": _REGION,
}
_ACCESS = "access is denied: these credentials must be allowed to list, read, write and delete there"
_STATUSES = {
    301: _REGION,
    307: _REGION,
    401: f"the endpoint wants other credentials: {_KEYS}",
    403: _ACCESS,
    404: "there is no such bucket there; or what answers is no object store: look at the endpoint",
    507: "the store is full",
}
_PASSING = {429, 500, 502, 503, 504}
"""Answers that another try may change."""
_BUSY = "the store asks to slow down: take a smaller concurrency, or ask who else is using it"


class Cause(NamedTuple):
    """``passing``: another try may succeed.  ``wrong``: the store answered, and what it said of an object of ours is not true."""

    text: str
    passing: bool = False
    wrong: bool = False


def cause_of(error: BaseException) -> Cause:
    """Why a request of obstore or botocore failed."""
    text = str(error)
    answer: Any = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore has read the answer
        status, code = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0), str(answer.get("Error", {}).get("Code", ""))
        return _answered(int(status or 0), code if code.isascii() and code.isalpha() else "")
    if found := _STATUS.search(text):
        code = _CODE.search(text)
        return _answered(int(found[1]), code[1] if code else "")
    if "NotPartial" in text:
        return Cause("the endpoint answers a request for a part of an object with all of it: it can't do ranges")
    if found := _RANGE.search(text):
        return Cause(f"bytes {found[1]} were asked for, bytes {found[2]} came", wrong=True)
    return _unanswered(type(error).__name__, text)


def failure(doing: str, error: BaseException, reached: str = "") -> StorageError:
    """``failure("cannot put s3://…", error)``, to be raised ``from None``: the original may say what nobody should read.

    ``reached``: what names the endpoint.
    """
    cause = cause_of(error)
    where = f" ({reached})" if reached and _STATUS.search(str(error)) is None and not cause.wrong else ""
    return StorageError(doing, OSError(errno.EIO, cause.text + where))


def _answered(status: int, code: str) -> Cause:
    if code in _CODES:
        return Cause(_CODES[code])
    if code == "NoSuchKey":
        return Cause("it is not there, though the store had said that it was written", wrong=True)
    if status in (429, 503) or code == "SlowDown":
        return Cause(f"{_BUSY} ({status} {code})" if code else f"{_BUSY} ({status})", passing=True)
    if status in _STATUSES:
        return Cause(_STATUSES[status] + (f" ({status} {code})" if code else f" ({status})"))
    return Cause(f"the endpoint answered {status}{f' {code}' if code else ''}", passing=status in _PASSING)


def _unanswered(name: str, said: str) -> Cause:
    """No answer, or none that was whole.  ``name``: of the exception."""
    text = name + said
    kind = _KIND.search(text)
    if "certificate" in text.lower() or "UnknownIssuer" in text or "SSLError" in text:
        return Cause("the endpoint's certificate is not trusted: name its authority with AWS_CA_BUNDLE")
    if "InvalidContentType" in text:
        return Cause("what answers there speaks no TLS: is the endpoint http://?")
    if "dns error" in text:
        return Cause("the name of the endpoint is not known")
    if "Connection refused" in text:
        return Cause("nothing listens at the endpoint: connection refused")
    if "TimedOut" in text or "Timeout" in text:
        return Cause("the endpoint did not answer in time", passing=not (kind and kind[1] == "Connect"))
    if kind and kind[1] == "Connect":
        return Cause("the endpoint cannot be reached")
    if any(word in text for word in ("Parse(", "InvalidListResponse", "Metadata {")):
        return Cause("what answers there is no object store: look at the endpoint")
    if kind and kind[1] in ("Request", "Interrupted", "Decode"):
        return Cause("the connection broke in the middle of a request", passing=True)
    return Cause(f"the request failed ({name})")

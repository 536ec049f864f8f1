"""What an answer means: the verdict table as one pure function.

Decides from status, error code, error form and transport fate alone what kind of thing happened to an
attempt. It knows nothing of batches, back-off or who else is failing; `service.core.delivery` acts on it.

Sources: the Conversations API reference (OpenAI, Alibaba Model Studio), RFC 9110 for statuses.
"""

from __future__ import annotations

import enum
import http
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.core.model import Answered, ErrorForm, Fate, Unanswered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.core.model import Answer, ErrorBody


class Kind(enum.StrEnum):
    """What happened to an attempt. The values are the ``verdict`` label of the metrics."""

    DELIVERED = "delivered"
    BUSY = "busy"
    """The conversation is locked: it alone waits, and never exhausts."""
    THROTTLED = "throttled"
    """Too much at once for the account: everybody slows down; nothing was stored."""
    TRANSIENT = "transient"
    """Trouble, and certainly nothing was stored."""
    AMBIGUOUS = "ambiguous"
    """Trouble, and it may have been stored: read back before anything is sent again."""
    OPERATOR = "operator"
    """Somebody has to mend something; until then nobody's message will pass."""
    CONVERSATION_NOT_FOUND = "conversation_not_found"
    FORBIDDEN = "forbidden"
    TOO_LARGE = "too_large"
    REJECTED = "rejected"
    """The API refuses the content of at least one item."""


REFUSALS = frozenset({Kind.CONVERSATION_NOT_FOUND, Kind.FORBIDDEN, Kind.TOO_LARGE, Kind.REJECTED})
"""Definite answers about this request: nothing of what was sent is wrong with the host."""

CODE_KINDS: Mapping[str, Kind] = {
    "conversation_locked": Kind.BUSY,
    "rate_limit_exceeded": Kind.THROTTLED,
    "insufficient_quota": Kind.OPERATOR,
    "invalid_api_key": Kind.OPERATOR,
    "invalidapikey": Kind.OPERATOR,
    "arrearage": Kind.OPERATOR,
    "billing_not_active": Kind.OPERATOR,
    "prepaidbilloverdue": Kind.OPERATOR,
    "postpaidbilloverdue": Kind.OPERATOR,
    "commoditynotpurchased": Kind.OPERATOR,
    "allocationquota.freetieronly": Kind.OPERATOR,
    "invalid_url": Kind.OPERATOR,
    "unknown_url": Kind.OPERATOR,
    "conversation_not_found": Kind.CONVERSATION_NOT_FOUND,
}
"""Error codes that say more than their status, in lower case. Settings may add to them."""

STATUS_KINDS: Mapping[int, Kind] = {
    401: Kind.OPERATOR,
    402: Kind.OPERATOR,
    403: Kind.FORBIDDEN,
    404: Kind.OPERATOR,
    405: Kind.OPERATOR,
    407: Kind.OPERATOR,
    408: Kind.TRANSIENT,
    409: Kind.BUSY,
    413: Kind.TOO_LARGE,
    423: Kind.BUSY,
    429: Kind.THROTTLED,
}
"""What a status means when its error code says no more; other 3xx are the operator's, other 4xx refusals."""

WRONG_URL_PREFIX = "invalid url"
"""How OpenAI's own error form words a path it does not have (404 with no code)."""


@dataclass(slots=True, frozen=True)
class Verdict:
    """One attempt judged.

    ``code`` is the API's error code, or a short word of our own; ``culprit`` the index of the item the
    error names; ``last_word`` is true when the API itself said it has finished with the request.
    """

    kind: Kind
    code: str = ""
    message: str = ""
    status: int | None = None
    culprit: int | None = None
    retry_after_seconds: float | None = None
    last_word: bool = False


_DELIVERED = Verdict(Kind.DELIVERED, status=200)


def judge(answer: Answer, sent: int, overrides: Mapping[str, Kind] | None = None) -> Verdict:
    """Judge the ``answer`` to an attempt that carried ``sent`` items.

    ``overrides`` maps error codes in lower case to kinds, for vendors whose codes are not known here.
    """
    if isinstance(answer, Unanswered):
        return _judge_silence(answer)
    status = answer.status
    if 200 <= status < 300:
        if answer.items is not None and len(answer.items) == sent:
            return _DELIVERED
        return Verdict(
            Kind.AMBIGUOUS, "unexpected_answer", f"status {status} without a list of the {sent} items sent", status
        )
    error = answer.error
    kind = _kind(answer, overrides or {})
    return Verdict(
        kind,
        code=error.code if error else f"http_{status}",
        message=error.message if error else _phrase(status),
        status=status,
        culprit=error.culprit if error and error.culprit is not None and error.culprit < sent else None,
        retry_after_seconds=answer.retry_after_seconds,
        last_word=kind is not Kind.AMBIGUOUS or _own_form(status, error),
    )


def _judge_silence(answer: Unanswered) -> Verdict:
    if answer.fate is Fate.UNKNOWN:
        return Verdict(Kind.AMBIGUOUS, answer.code, answer.message)
    if answer.code == "tls_error":
        return Verdict(Kind.OPERATOR, answer.code, answer.message, last_word=True)
    return Verdict(Kind.TRANSIENT, answer.code, answer.message, last_word=True)


def _kind(answer: Answered, overrides: Mapping[str, Kind]) -> Kind:
    status, error = answer.status, answer.error
    if status >= 500 or status < 200:
        # Whatever a server error says of its cause, it does not say that nothing was stored.
        return Kind.AMBIGUOUS
    code = error.code.lower() if error else ""
    by_code = overrides.get(code) or CODE_KINDS.get(code)
    if by_code is None and code.startswith("throttling"):
        by_code = Kind.THROTTLED
    elif by_code is None and error and error.message.lower().startswith(WRONG_URL_PREFIX):
        by_code = Kind.OPERATOR
    if by_code is not None:
        return by_code
    if status == 404 and _own_form(status, error):
        return Kind.CONVERSATION_NOT_FOUND
    if status == 429 and answer.should_retry is False:
        return Kind.OPERATOR
    return STATUS_KINDS.get(status) or (
        Kind.OPERATOR if status < 400 else Kind.TRANSIENT if answer.should_retry else Kind.REJECTED
    )


def _own_form(status: int, error: ErrorBody | None) -> bool:
    """Whether the body is an error the API itself wrote, not a gateway's.

    A flat ``{"error": "Not Found"}`` that only repeats the status phrase is what web frameworks and
    proxies say of a path they do not know.
    """
    if error is None:
        return False
    return error.form is not ErrorForm.FLAT or error.message.lower() != _phrase(status).lower()


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return f"status {status}"

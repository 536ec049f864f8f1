"""The verdict table of the contract, a row a test, in every form an error body comes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from service.core.model import Answered, ErrorBody, ErrorForm, Fate, Unanswered
from service.core.verdict import CODE_KINDS, REFUSALS, STATUS_KINDS, Kind, Verdict, judge

if TYPE_CHECKING:
    from service.core.model import Answer

NESTED, FLAT, DASHSCOPE = ErrorForm.NESTED, ErrorForm.FLAT, ErrorForm.DASHSCOPE
SENT = 20


def answered(
    status: int,
    code: str = "",
    message: str = "words",
    form: ErrorForm | None = NESTED,
    *,
    should_retry: bool | None = None,
    retry_after: float | None = None,
    culprit: int | None = None,
) -> Answered:
    """An error answer; ``form=None``: no JSON at all."""
    error = None if form is None else ErrorBody(form, code, message, culprit)
    return Answered(status, error=error, should_retry=should_retry, retry_after_seconds=retry_after)


def kind(answer: Answer) -> Kind:
    return judge(answer, SENT).kind


def listing(count: int, status: int = 200) -> Answered:
    return Answered(status, items=[b"{}"] * count, last_id="msg_1")


# 2xx


@pytest.mark.parametrize("status", [200, 201, 202, 299])
def test_a_2xx_that_lists_as_many_items_as_were_sent_is_delivered(status: int) -> None:
    assert kind(listing(SENT, status)) is Kind.DELIVERED
    assert judge(listing(0, status), 0).kind is Kind.DELIVERED


@pytest.mark.parametrize("answer", [listing(SENT - 1), listing(SENT + 1), listing(0), Answered(200), Answered(204)])
def test_any_other_2xx_is_of_unknown_fate_and_not_the_last_word(answer: Answered) -> None:
    verdict = judge(answer, SENT)
    assert verdict.kind is Kind.AMBIGUOUS
    assert verdict.code == "unexpected_answer"
    assert not verdict.last_word
    assert str(SENT) in verdict.message


# Busy


@pytest.mark.parametrize("form", [NESTED, DASHSCOPE])
def test_a_locked_conversation_is_busy_though_it_says_400(form: ErrorForm) -> None:
    assert kind(answered(400, "conversation_locked", form=form)) is Kind.BUSY


@pytest.mark.parametrize("form", [NESTED, FLAT, DASHSCOPE, None])
@pytest.mark.parametrize("status", [409, 423])
def test_409_and_423_are_busy_in_every_form(status: int, form: ErrorForm | None) -> None:
    assert kind(answered(status, form=form)) is Kind.BUSY


# Throttled and transient


@pytest.mark.parametrize("form", [NESTED, FLAT, DASHSCOPE, None])
def test_429_is_throttling_in_every_form(form: ErrorForm | None) -> None:
    assert kind(answered(429, form=form)) is Kind.THROTTLED


@pytest.mark.parametrize(
    "code", ["Throttling", "Throttling.RateQuota", "throttling.allocationquota", "rate_limit_exceeded"]
)
@pytest.mark.parametrize("status", [400, 403, 429])
def test_a_throttling_code_is_throttling_whatever_the_status(status: int, code: str) -> None:
    assert kind(answered(status, code, form=DASHSCOPE)) is Kind.THROTTLED


@pytest.mark.parametrize("form", [NESTED, FLAT, DASHSCOPE, None])
def test_408_is_transient_and_certainly_nothing_was_stored(form: ErrorForm | None) -> None:
    verdict = judge(answered(408, form=form), SENT)
    assert verdict.kind is Kind.TRANSIENT
    assert verdict.last_word


def test_a_refused_connection_is_transient_and_certainly_nothing_was_stored() -> None:
    assert judge(Unanswered(Fate.NOT_SENT, "connect_error", "refused"), SENT) == Verdict(
        Kind.TRANSIENT, "connect_error", "refused", last_word=True
    )


@pytest.mark.parametrize("status", [408, 429, 500, 400])
def test_a_named_wait_is_passed_on(status: int) -> None:
    assert judge(answered(status, retry_after=2.5), SENT).retry_after_seconds == 2.5
    assert judge(answered(status), SENT).retry_after_seconds is None


# Ambiguous


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 529, 599])
@pytest.mark.parametrize("form", [NESTED, FLAT, DASHSCOPE, None])
@pytest.mark.parametrize("code", ["", "conversation_locked", "Arrearage", "Throttling", "InvalidApiKey"])
def test_every_5xx_is_of_unknown_fate_whatever_it_says(status: int, form: ErrorForm | None, code: str) -> None:
    assert kind(answered(status, code, form=form)) is Kind.AMBIGUOUS
    assert judge(answered(status, code, form=form), SENT, {code: Kind.REJECTED}).kind is Kind.AMBIGUOUS


@pytest.mark.parametrize("code", ["timeout", "connection_cut", "tls_error"])
def test_silence_or_a_cut_after_sending_began_is_of_unknown_fate(code: str) -> None:
    assert judge(Unanswered(Fate.UNKNOWN, code, "gone"), SENT) == Verdict(Kind.AMBIGUOUS, code, "gone", last_word=False)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (NESTED, "The server had an error while processing your request."),
        (NESTED, "Internal Server Error"),
        (DASHSCOPE, "An internal error has occured"),
        (FLAT, "the database is read-only"),
    ],
)
@pytest.mark.parametrize("status", [500, 503])
def test_a_5xx_in_a_form_of_the_api_is_its_last_word(status: int, form: ErrorForm, message: str) -> None:
    assert judge(answered(status, "server_error", message, form), SENT).last_word


@pytest.mark.parametrize(
    ("status", "code", "message", "form"),
    [
        (503, "", "", None),
        (500, "", "Internal Server Error", FLAT),
        (503, "", "service unavailable", FLAT),
        (502, "502", "Bad gateway.", NESTED),
        (502, "server_error", "upstream went away", NESTED),
        (504, "RequestTimeOut", "Request timed out, please try again later.", DASHSCOPE),
        (503, "503", "Service unavailable.", NESTED),
        (599, "", "status 599", FLAT),
    ],
)
def test_a_5xx_of_somebody_in_between_is_not_the_last_word(
    status: int, code: str, message: str, form: ErrorForm | None
) -> None:
    assert not judge(answered(status, code, message, form), SENT).last_word


# For the operator


@pytest.mark.parametrize("form", [NESTED, FLAT, DASHSCOPE, None])
@pytest.mark.parametrize("status", [401, 402, 407, 421, 426])
def test_a_rejected_key_or_an_unpaid_bill_is_the_operators_in_every_form(status: int, form: ErrorForm | None) -> None:
    assert kind(answered(status, form=form)) is Kind.OPERATOR


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 399])
@pytest.mark.parametrize("form", [NESTED, None])
def test_every_3xx_is_the_operators(status: int, form: ErrorForm | None) -> None:
    assert kind(answered(status, form=form)) is Kind.OPERATOR


def test_a_tls_failure_is_the_operators() -> None:
    verdict = judge(Unanswered(Fate.NOT_SENT, "tls_error", "self-signed certificate"), SENT)
    assert verdict.kind is Kind.OPERATOR
    assert verdict.status is None


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "Arrearage"),
        (429, "insufficient_quota"),
        (400, "InvalidApiKey"),
        (400, "invalid_api_key"),
        (403, "AllocationQuota.FreeTierOnly"),
        (400, "CommodityNotPurchased"),
        (400, "PrepaidBillOverdue"),
        (400, "PostpaidBillOverdue"),
        (429, "billing_not_active"),
    ],
)
@pytest.mark.parametrize("form", [NESTED, DASHSCOPE])
def test_an_account_that_can_not_be_served_is_the_operators_whatever_the_status(
    status: int, code: str, form: ErrorForm
) -> None:
    assert kind(answered(status, code, form=form)) is Kind.OPERATOR


@pytest.mark.parametrize(
    ("status", "code", "message", "form"),
    [
        (404, "", "", None),
        (405, "", "", None),
        (404, "", "Not Found", FLAT),
        (404, "", "not found", FLAT),
        (404, "404", "Not Found", NESTED),
        (404, "NotFoundError", "Not Found", NESTED),
        (404, "NotFound", "Not Found", DASHSCOPE),
        (405, "", "Method Not Allowed", FLAT),
        (405, "method_not_allowed", "no POST here", NESTED),
        (404, "invalid_request_error", "Invalid URL (POST /conversations/c/items)", NESTED),
        (404, "unknown_url", "Unknown request URL: POST /v2/conversations. Please check the URL", NESTED),
        (404, "invalid_request_error", "Unknown request URL: POST /v2", NESTED),
        (404, "invalid_url", "no such path", NESTED),
        (400, "InvalidParameter", "url error, please check url！ For details, see: …", DASHSCOPE),  # noqa: RUF001 - theirs
        (400, "InvalidParameter", "url error, please check url", NESTED),
        (400, "InvalidURL", "Invalid URL provided in your request.", DASHSCOPE),
    ],
)
def test_a_path_that_the_host_does_not_have_is_the_operators(
    status: int, code: str, message: str, form: ErrorForm | None
) -> None:
    assert kind(answered(status, code, message, form)) is Kind.OPERATOR


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "invalid_value", "Invalid URL in 'items[0].content[0].image_url'"),
        (400, "invalid_url", "The image could not be fetched"),
        (422, "InvalidURL", "Invalid URL provided in your request."),
    ],
)
def test_a_bad_url_inside_an_item_stops_nobody_else(status: int, code: str, message: str) -> None:
    assert kind(answered(status, code, message)) is Kind.REJECTED


def test_a_429_that_asks_not_to_be_retried_is_the_operators() -> None:
    assert kind(answered(429, should_retry=False)) is Kind.OPERATOR
    assert kind(answered(429, should_retry=True)) is Kind.THROTTLED
    assert kind(answered(429, "rate_limit_exceeded", should_retry=False)) is Kind.THROTTLED


# Refusals


@pytest.mark.parametrize(
    ("code", "message", "form"),
    [
        ("invalid_request_error", "Conversation with id 'conv_1' not found.", NESTED),
        ("", "Conversation with id 'conv_1' not found.", NESTED),
        ("", "No conversation conv_1", FLAT),
        ("ConversationNotFound", "no such conversation", DASHSCOPE),
        ("conversation_not_found", "Not Found", NESTED),
        ("no_such_conversation", "Not Found", NESTED),
    ],
)
def test_a_404_in_a_form_of_the_api_is_a_conversation_that_is_not_there(
    code: str, message: str, form: ErrorForm
) -> None:
    assert kind(answered(404, code, message, form)) is Kind.CONVERSATION_NOT_FOUND


def test_the_code_of_a_conversation_that_is_not_there_says_it_with_any_status() -> None:
    assert kind(answered(400, "conversation_not_found")) is Kind.CONVERSATION_NOT_FOUND


@pytest.mark.parametrize("form", [NESTED, FLAT, DASHSCOPE, None])
def test_403_is_forbidden_in_every_form(form: ErrorForm | None) -> None:
    assert kind(answered(403, "AccessDenied", form=form)) is Kind.FORBIDDEN


@pytest.mark.parametrize("form", [NESTED, FLAT, DASHSCOPE, None])
def test_413_is_too_large_in_every_form(form: ErrorForm | None) -> None:
    assert kind(answered(413, form=form)) is Kind.TOO_LARGE


@pytest.mark.parametrize("form", [NESTED, FLAT, DASHSCOPE, None])
@pytest.mark.parametrize("status", [400, 406, 410, 411, 415, 418, 422, 424, 431, 451, 499])
def test_any_other_4xx_refuses_an_item_in_every_form(status: int, form: ErrorForm | None) -> None:
    assert kind(answered(status, form=form)) is Kind.REJECTED


@pytest.mark.parametrize(
    "code", ["InvalidParameter", "DataInspectionFailed", "invalid_value", "array_above_max_length"]
)
def test_what_vendors_call_a_refusal_is_one(code: str) -> None:
    verdict = judge(answered(400, code, "not that"), SENT)
    assert (verdict.kind, verdict.code, verdict.message, verdict.status) == (Kind.REJECTED, code, "not that", 400)


@pytest.mark.parametrize(
    ("named", "kept"), [(0, 0), (3, 3), (19, 19), (20, None), (4096, None), (-1, None), (None, None)]
)
def test_a_culprit_is_believed_only_within_what_was_sent(named: int | None, kept: int | None) -> None:
    assert judge(answered(400, culprit=named), SENT).culprit == kept


def test_a_culprit_of_a_single_item_is_that_item() -> None:
    assert judge(answered(400, culprit=0), 1).culprit == 0
    assert judge(answered(400, culprit=1), 1).culprit is None


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
def test_a_refusal_is_the_last_word(status: int) -> None:
    verdict = judge(answered(status, message="said by the API"), SENT)
    assert verdict.kind in REFUSALS
    assert verdict.last_word


@pytest.mark.parametrize("status", [400, 403, 413, 422, 451])
@pytest.mark.parametrize(
    ("code", "message", "form", "foreign"),
    [
        ("", "", None, True),
        ("InvalidParameter", "not that", DASHSCOPE, False),
        ("invalid_value", "not that", NESTED, False),
        ("", "not that", FLAT, False),
    ],
)
def test_a_refusal_in_no_form_of_the_api_may_be_somebody_elses(
    status: int, code: str, message: str, form: ErrorForm | None, foreign: bool
) -> None:
    assert judge(answered(status, code, message, form), SENT).foreign is foreign


@pytest.mark.parametrize(
    ("code", "form"), [("", FLAT), ("400", NESTED), ("BadRequest", DASHSCOPE), ("BadRequestError", NESTED)]
)
def test_a_refusal_that_only_repeats_its_status_may_be_somebody_elses(code: str, form: ErrorForm) -> None:
    assert judge(answered(400, code, "Bad Request", form), SENT).foreign
    assert not judge(answered(400, "invalid_value", "Bad Request", form), SENT).foreign or form is FLAT


def test_a_refusal_that_settings_name_is_believed_whatever_its_form() -> None:
    answer = answered(400, "400", "Bad Request")
    assert judge(answer, SENT).foreign
    assert not judge(answer, SENT, {"400": Kind.REJECTED}).foreign


@pytest.mark.parametrize("status", [200, 301, 401, 404, 408, 409, 429, 500])
def test_only_refusals_are_somebody_elses(status: int) -> None:
    assert not judge(answered(status, form=None), SENT).foreign


# Whatever else


def test_x_should_retry_turns_a_refusal_into_something_transient_and_nothing_else() -> None:
    assert kind(answered(400, should_retry=True)) is Kind.TRANSIENT
    assert kind(answered(418, form=None, should_retry=True)) is Kind.TRANSIENT
    assert kind(answered(400, should_retry=False)) is Kind.REJECTED
    assert kind(answered(401, should_retry=True)) is Kind.OPERATOR
    assert kind(answered(403, should_retry=True)) is Kind.FORBIDDEN
    assert kind(answered(408, should_retry=False)) is Kind.TRANSIENT
    assert kind(answered(409, should_retry=False)) is Kind.BUSY
    assert kind(answered(500, should_retry=False)) is Kind.AMBIGUOUS
    assert kind(answered(301, should_retry=True)) is Kind.OPERATOR


@pytest.mark.parametrize("status", [0, 100, 101, 103, 199, 600, 999])
def test_a_status_that_ends_no_request_is_of_unknown_fate(status: int) -> None:
    verdict = judge(Answered(status), SENT)
    assert verdict.kind is Kind.AMBIGUOUS
    assert not verdict.last_word


@pytest.mark.parametrize(
    ("status", "phrase"), [(418, "I'm a Teapot"), (503, "Service Unavailable"), (499, "status 499")]
)
def test_an_answer_without_a_body_is_told_by_its_status(status: int, phrase: str) -> None:
    verdict = judge(Answered(status), SENT)
    assert (verdict.code, verdict.message, verdict.status) == (f"http_{status}", phrase, status)


@pytest.mark.parametrize("made", [kind for kind in Kind if kind is not Kind.DELIVERED])
def test_settings_may_say_what_a_code_means(made: Kind) -> None:
    overrides = {"vendor.oddity": made}
    for status in (301, 400, 401, 404, 422, 429):
        assert judge(answered(status, "Vendor.Oddity", form=DASHSCOPE), SENT, overrides).kind is made


def test_settings_outweigh_what_is_known_of_a_code() -> None:
    overrides = {"arrearage": Kind.REJECTED, "throttling.ratequota": Kind.BUSY}
    assert judge(answered(400, "Arrearage"), SENT, overrides).kind is Kind.REJECTED
    assert judge(answered(429, "Throttling.RateQuota"), SENT, overrides).kind is Kind.BUSY
    assert judge(answered(429, "Throttling.Other"), SENT, overrides).kind is Kind.THROTTLED
    assert judge(answered(400, "unheard of"), SENT, overrides).kind is Kind.REJECTED
    assert judge(listing(SENT), SENT, {"": Kind.REJECTED}).kind is Kind.DELIVERED


def test_the_tables_are_keyed_as_they_are_looked_up() -> None:
    assert all(code == code.lower() for code in CODE_KINDS)
    assert all(400 <= status < 500 for status in STATUS_KINDS)


def test_no_answer_whatever_is_left_without_a_verdict() -> None:
    for status in range(1000):
        for form in (None, *ErrorForm):
            for should_retry in (None, True, False):
                verdict = judge(answered(status, "odd", form=form, should_retry=should_retry), SENT)
                assert verdict.kind is not Kind.DELIVERED
                assert (verdict.kind is Kind.AMBIGUOUS) is (status < 300 or status >= 500)

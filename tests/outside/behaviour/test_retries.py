"""What the SDK retries, and when: the upstream's advice must reach it, and nobody may retry besides."""

import openai
import pytest

from scripted import Rst, chat, error

# The SDK's own first wait is half a second at most.
ADVICE = [{"retry_after": "1"}, {"retry_after_ms": "1000"}, {"retry_after": "0.9", "retry_after_ms": "1000"}]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("advice", ADVICE, ids=["seconds", "milliseconds", "both"])
def test_advice_is_followed(told, status, advice):
    told.upstream.answers(error(status, **advice), chat())
    answer = told.sdk(max_retries=2).chat.completions.create(**told.hello)
    assert answer.choices[0].message.content == "said"
    (wait,) = told.upstream.waits()
    assert wait >= 1.0


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_without_advice(told, status):
    told.upstream.answers(error(status), chat())
    answer = told.sdk(max_retries=1).chat.completions.create(**told.hello)
    assert answer.choices[0].message.content == "said"
    assert len(told.upstream.waits()) == 1


def test_no_is_no(told):
    told.upstream.answers(error(503, x_should_retry="false"), chat())
    with pytest.raises(openai.InternalServerError):
        told.sdk(max_retries=3).chat.completions.create(**told.hello)
    assert len(told.upstream.asked) == 1


def test_yes_is_yes(told):
    told.upstream.answers(error(400, x_should_retry="true"), chat())
    told.sdk(max_retries=3).chat.completions.create(**told.hello)
    assert len(told.upstream.asked) == 2


def test_too_long_a_wait_is_none(told):
    told.upstream.answers(error(503, retry_after="300"), chat())
    with pytest.raises(openai.InternalServerError):
        told.sdk(max_retries=3).chat.completions.create(**told.hello)
    assert len(told.upstream.asked) == 1


def test_until_it_gives_up(told):
    told.upstream.answers(error(429, retry_after_ms="10"))
    with pytest.raises(openai.RateLimitError):
        told.sdk(max_retries=3).chat.completions.create(**told.hello)
    assert len(told.upstream.asked) == 4
    counts = [headers["x-stainless-retry-count"] for _, headers in told.upstream.asked
              if "x-stainless-retry-count" in headers]
    assert counts in ([], ["0", "1", "2", "3"])


def test_a_stream_that_is_refused_first(told):
    told.upstream.answers(error(503, retry_after_ms="10"), chat())
    with pytest.raises((openai.APIError, AssertionError)):
        # The second answer is no stream: what matters is that it was asked for.
        list(told.sdk(max_retries=1).chat.completions.create(stream=True, **told.hello))
        raise AssertionError
    assert len(told.upstream.asked) == 2


def test_a_reset_before_the_answer(told):
    """It may have run: the worker does not repeat it, the SDK may."""
    told.upstream.answers([Rst], chat())
    expected = openai.InternalServerError if told.route.through else openai.APIConnectionError
    with pytest.raises(expected):
        told.sdk().chat.completions.create(**told.hello)

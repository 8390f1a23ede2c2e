"""Uploads: the file before the model, after it, and large; answered whole and streamed."""

import io
import math
import struct
import wave

import pytest

pytestmark = pytest.mark.needs("audio")


def tone(seconds, rate=16_000):
    """A file of a tone."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        sample = lambda n: int(8_000 * math.sin(n * 2 * math.pi * 440 / rate))
        out.writeframes(b"".join(struct.pack("<h", sample(n)) for n in range(rate * seconds)))
    return file.getvalue()


@pytest.fixture
def model(route):
    return route.serves["audio"]


@pytest.mark.parametrize("seconds", [1, 20])
def test_transcription(client, model, seconds):
    answer = client.audio.transcriptions.with_raw_response.create(
        model=model, file=("tone.wav", tone(seconds), "audio/wav"), temperature=0,
        language="en", extra_body={"max_completion_tokens": 8},
    )
    assert "text" in answer.http_response.json()
    assert answer.http_response.json()["usage"]["seconds"] >= seconds


def test_translation(client, model):
    answer = client.audio.translations.create(
        model=model, file=("tone.wav", tone(1), "audio/wav"), temperature=0,
        extra_body={"max_completion_tokens": 8},
    )
    assert isinstance(answer.text, str)


def test_streamed(client, model):
    raw = client.audio.transcriptions.with_streaming_response.create(
        model=model, file=("tone.wav", tone(1), "audio/wav"), temperature=0, stream=True,
        language="en", extra_body={"max_completion_tokens": 8},
    )
    with raw as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize("order", ["model first", "file first"])
def test_the_model_may_stand_anywhere(route, model, order):
    """Parts by hand, the file of a name that looks like a boundary's."""
    part = lambda name, body, more="": (
        f'--edge\r\ncontent-disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
        + body + b"\r\n"
    )
    file = part("file", tone(1), '; filename="--edge.wav"\r\ncontent-type: audio/wav')
    parts = [part("model", model.encode()), part("language", b"en"), part("temperature", b"0"), file]
    if order == "file first":
        parts.reverse()
    answer = route.noted().post(
        f"{route.base}/v1/audio/transcriptions",
        content=b"".join(parts) + b"--edge--\r\n",
        headers={"content-type": 'multipart/form-data; boundary="edge"'},
    )
    assert answer.status_code == 200, answer.text

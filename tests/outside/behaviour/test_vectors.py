"""Embeddings, and what else pooling models answer."""

import base64
import struct

import pytest

pytestmark = pytest.mark.needs("embed")


@pytest.fixture
def model(route):
    return route.serves["embed"]


def test_base64_and_float(client, model):
    # The SDK asks for base64 unless told otherwise, and decodes it.
    asked = client.embeddings.create(model=model, input=["one", "two words"])
    floats = client.embeddings.create(
        model=model, input=["one", "two words"], encoding_format="float"
    )
    assert [item.index for item in asked.data] == [0, 1]
    for one, other in zip(asked.data, floats.data):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert asked.usage.prompt_tokens > 0


def test_raw_base64(client, model):
    answer = client.embeddings.with_raw_response.create(
        model=model, input="one", encoding_format="base64"
    )
    text = answer.http_response.json()["data"][0]["embedding"]
    data = base64.b64decode(text, validate=True)
    assert len(data) % 4 == 0 and struct.unpack("<f", data[:4])


def test_many_at_once(client, model):
    """An answer of some size: 256 vectors as text."""
    inputs = [f"text {n}" for n in range(256)]
    answer = client.embeddings.create(model=model, input=inputs, encoding_format="float")
    assert [item.index for item in answer.data] == list(range(256))


def test_pooling(client, model):
    base = str(client.base_url).removesuffix("/v1/")
    answer = client.with_options(base_url=base).post(
        "/pooling", body={"model": model, "input": ["one", "two"], "task": "embed"}, cast_to=object
    )
    assert len(answer["data"]) == 2

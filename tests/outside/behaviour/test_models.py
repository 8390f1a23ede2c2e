"""The list of models: the engine's own straight, the configuration's through the worker."""

import openai
import pytest


def test_list(route):
    listed = route.openai().models.list()
    assert set(route.serves.values()) <= {model.id for model in listed}
    assert {model.object for model in listed} == {"model"}


def test_one(route):
    """vLLM answers with 404 to this path, whatever is asked; the worker knows."""
    if not route.through:
        return
    for model in route.serves.values():
        assert route.openai().models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError) as raised:
        route.openai().models.retrieve("nobody")
    assert raised.value.code == "model_not_found"

"""Prometheus' own linter on both pages of metrics, after traffic of every kind."""

import subprocess

import openai
import pytest

from stack import get


@pytest.mark.parametrize("port", ["admin", "control"])
def test_promtool_accepts(stack, sdk, port):
    sdk.completions.create(model="chat", prompt="hello", max_tokens=1)
    with pytest.raises(openai.NotFoundError):
        sdk.completions.create(model="nobody", prompt="hello")
    page = get(f"http://{getattr(stack, port)}/metrics")
    assert "forebay_config_revision" in page
    check = ["promtool", "check", "metrics"]
    checked = subprocess.run(check, input=page, capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stdout + checked.stderr

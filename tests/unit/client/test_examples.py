"""The examples of the client's README, run as they stand."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

import twinpath.client
from tests.unit.client.fake_router import FakeRouter

PAGE = Path(twinpath.client.__file__).with_name("README.md")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
async def test_an_example_runs_as_it_stands(
    number: int,
    address: str,
    router: FakeRouter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Only the address is another one than on the page."""
    (tmp_path / "caller.token").write_text("token\n")
    monkeypatch.chdir(tmp_path)
    code = EXAMPLES[number].replace("127.0.0.1:7070", address)
    await asyncio.to_thread(exec, compile(code, f"{PAGE}#{number}", "exec"), {"__name__": "page"})
    assert router.requests
    if number == 0:
        assert "152.5" in capsys.readouterr().out


def test_the_page_has_examples() -> None:
    """A page whose blocks are not found would test nothing."""
    assert len(EXAMPLES) == 5

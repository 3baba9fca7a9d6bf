"""What operators asked for, kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.local.wishes import Wish, Wishes


def test_the_way_back_is_remembered() -> None:
    """Serving another version notes which one did before; back and forth."""
    wish = Wish().with_version("1").serve("1").with_version("10").with_version("2").serve("10")
    assert wish == Wish(("1", "2", "10"), "10", "1")
    assert wish.serve("1") == Wish(("1", "2", "10"), "1", "10")
    assert wish.serve("10") == wish


def test_a_version_that_goes_is_no_way_back() -> None:
    """Neither serving nor before."""
    wish = Wish(("1", "2"), "2", "1")
    assert wish.without_version("1") == Wish(("2",), "2", "")
    assert wish.without_version("2") == Wish(("1",), "", "1")


def test_wishes_outlive_the_process(tmp_path: Path) -> None:
    """In the file, as a whole."""
    file = tmp_path / "state" / "models.json"
    Wishes(file).put("m", Wish(("1", "2"), "2", "1"))
    again = Wishes(file)
    assert list(again) == ["m"]
    assert again.get("m") == Wish(("1", "2"), "2", "1")
    assert again.get("other") is None
    assert [path.name for path in file.parent.iterdir()] == ["models.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"m": 1}', '{"m": {"versions": []}}'])
def test_a_file_that_cant_be_read_stops_the_start(tmp_path: Path, text: str) -> None:
    """Forgetting what operators asked for would load the wrong versions without a word."""
    file = tmp_path / "models.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"models\.json can't be read"):
        Wishes(file)

"""Do two answers agree? Floats within a tolerance, all else when equal."""

from __future__ import annotations

import math

import numpy as np
import pytest

from services.router.agreement import Tolerance, compare
from twinpath.inference import tensors


def floats(*values: float, name: str = "y"):
    """A float output."""
    return [tensors.from_numpy(name, np.array([values], "f4"))]


@pytest.mark.parametrize(
    ("tolerance", "now", "agrees"),
    [
        (Tolerance(), 100.0, True),
        (Tolerance(), 100.5, False),
        (Tolerance(absolute=0.5), 100.5, True),
        (Tolerance(absolute=0.49), 100.5, False),
        (Tolerance(relative=0.01), 101.0, True),
        (Tolerance(relative=0.01), 98.9, False),
        (Tolerance(absolute=1.0, relative=0.01), 102.0, True),
    ],
)
def test_a_float_agrees_within_absolute_plus_relative(tolerance, now, agrees) -> None:
    """The sum of both parts is what a value may differ by, measured from the recorded one."""
    found = compare("y", tolerance, floats(100.0), floats(now))
    assert found.agrees is agrees
    assert found.max_absolute == pytest.approx(abs(now - 100.0), rel=1e-4)
    assert found.max_relative == pytest.approx(abs(now - 100.0) / 100, rel=1e-4)


def test_one_element_beyond_is_enough() -> None:
    """An output agrees only if each of its elements does, and those that don't are counted."""
    found = compare("y", Tolerance(0.1), floats(1, 2, 3), floats(1, 2.05, 4))
    assert (found.agrees, found.elements, found.differing) == (False, 3, 1)


def test_a_nan_agrees_with_a_nan_alone() -> None:
    """No tolerance is so wide that a number agrees with no number."""
    wide = Tolerance(1e30, 1e30)
    assert compare("y", wide, floats(math.nan), floats(math.nan)).agrees
    assert not compare("y", wide, floats(1.0), floats(math.nan)).agrees
    assert not compare("y", wide, floats(math.nan), floats(1.0)).agrees


def test_labels_must_be_equal_whatever_the_tolerance() -> None:
    """Integers, booleans and texts have no almost."""
    wide = Tolerance(100, 100)
    one, two = ([tensors.from_numpy("y", np.array([[n]], "i8"))] for n in (1, 2))
    assert compare("y", wide, one, one).agrees
    found = compare("y", wide, one, two)
    assert not found.agrees
    assert (found.differing, found.tolerance, found.max_absolute) == (1, None, 0.0)


def texts(*parts: bytes):
    """A text output of so many elements."""
    array = np.empty(len(parts), dtype=object)
    array[:] = parts
    return [tensors.from_numpy("y", array)]


def test_a_text_in_parts_is_the_text_as_a_whole() -> None:
    """A stream is recorded as one text; a replay may give it in chunks."""
    assert compare("y", Tolerance(), texts(b"a note"), texts(b"a ", b"note")).agrees
    assert not compare("y", Tolerance(), texts(b"a note"), texts(b"a ", b"notes")).agrees


def test_what_can_not_be_compared_does_not_agree() -> None:
    """A missing output, another datatype or another shape is a disagreement with its reason."""
    wide = Tolerance(1e9, 1e9)
    assert "no such output" in compare("z", wide, floats(1), floats(1)).problem
    label = [tensors.from_numpy("y", np.array([[1]], "i8"))]
    assert "datatypes" in compare("y", wide, floats(1), label).problem
    assert "shape" in compare("y", wide, floats(1), floats(1, 2)).problem
    for other in (label, floats(1, 2), floats(1, name="z")):
        assert not compare("y", wide, floats(1), other).agrees

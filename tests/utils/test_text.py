"""Text, Markdown and argument checks."""

from typing import Any

import numpy as np
import pytest

from dpt_zoo.errors import InputError
from dpt_zoo.utils.markdown import escape, table
from dpt_zoo.utils.text import format_percent, plural, printable
from dpt_zoo.utils.validation import check_fraction, check_integer


def test_printable() -> None:
    assert printable("größer \x1b[31m\n\u202e") == "größer \\x1b[31m\\n\\u202e"


def test_numbers() -> None:
    assert (format_percent(40.25), format_percent(None)) == ("40.2", "-")
    assert (plural(1, "image"), plural(0, "image"), plural(1200, "image")) == ("1 image", "0 images", "1,200 images")


def test_markdown() -> None:
    assert table(("a", "b"), [("1", "2")], align="lr") == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
    assert table(("", ""), []) == "|  |  |\n| --- | --- |"
    assert escape("a|b*c\n[d]<e>") == r"a\|b\*c\\n\[d\]\<e\>"


@pytest.mark.parametrize("value", [1, 3, np.int64(2)])
def test_valid_integers(value: Any) -> None:
    check_integer("limit", value, 1, 3)
    check_integer("limit", value, 1)


@pytest.mark.parametrize("value", [0, 4, 1.0, "1", True, None])
def test_invalid_integers(value: Any) -> None:
    with pytest.raises(InputError, match=f"^limit must be a whole number from 1 to 3, not {value!r}$"):
        check_integer("limit", value, 1, 3)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", None])
def test_invalid_fractions(value: Any) -> None:
    for valid in (0, np.float32(0.5), 1):
        check_fraction("score", valid)
    with pytest.raises(InputError, match=f"^score must be a number from 0 to 1, not {value!r}$"):
        check_fraction("score", value)

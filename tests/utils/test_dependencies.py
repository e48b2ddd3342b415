"""Errors for packages that cannot be imported; OpenCV's are in tests/test_mmlab.py."""

import importlib

import pytest

from dpt_zoo.errors import DependencyError
from dpt_zoo.utils.dependencies import EXTRAS, explain_imports


@pytest.mark.parametrize(
    ("package", "extra"), [(package, extra) for extra, packages in EXTRAS.items() for package in packages]
)
def test_a_package_of_an_extra(package: str, extra: str) -> None:
    with (
        pytest.raises(DependencyError, match=rf'needs {package}, .* pip install "dpt-zoo\[{extra}\]"$'),
        explain_imports(),
    ):
        raise ModuleNotFoundError(f"No module named '{package}.part'", name=f"{package}.part")


def test_other_packages() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'") as raised, explain_imports():
        importlib.import_module("no_such_package")
    assert not isinstance(raised.value, DependencyError)

"""Names of devices."""

from typing import Any

import pytest
import torch

from dpt_zoo.errors import InputError
from dpt_zoo.utils.devices import device_name, find_device
from dpt_zoo.utils.environment import processor_name, versions


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_the_cpu(device: Any) -> None:
    assert find_device(device) == torch.device("cpu")


def test_auto() -> None:
    assert find_device() == find_device(None) == find_device("auto")
    assert (find_device().type != "cpu") == (torch.cuda.is_available() or torch.backends.mps.is_available())


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "", 99])
def test_devices_that_do_not_exist(device: Any) -> None:
    with pytest.raises(InputError, match=f"device '{device}' cannot be used .*: try 'cpu'") as raised:
        find_device(device)
    assert "\n" not in str(raised.value)


def test_the_environment() -> None:
    assert processor_name()
    assert device_name(torch.device("cpu")) == processor_name()
    if torch.cuda.is_available():
        assert device_name(torch.device("cuda")) == torch.cuda.get_device_name()
    assert {"dpt-zoo", "python", "torch", "mmdet"} <= versions().keys()

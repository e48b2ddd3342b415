"""The Dockerfile and the compose file, without a container engine: they name what exists, and start what works."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from reference_data import ROOT
from served import Running

from dpt_zoo.cli import _parser

INSTRUCTIONS = re.findall(
    r"^([A-Z]+) (.*)$", (ROOT / "Dockerfile").read_text().replace("\\\n", ""), re.MULTILINE
)  # their names and arguments


def arguments(name: str) -> list[str]:
    """The arguments of each instruction of a name."""
    return [text for instruction, text in INSTRUCTIONS if instruction == name]


def test_what_is_copied_exists_and_is_all_that_a_build_needs(tmp_path: Path) -> None:
    copied = [name for text in arguments("COPY") if not text.startswith("--from") for name in text.split()[:-1]]
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / name).exists() for name in copied)
    read_by_setup = re.findall(r'ROOT / "([\w./]+)"', (ROOT / "setup.py").read_text())
    (data_line,) = re.findall(r"^DATA = (.*)$", (ROOT / "setup.py").read_text(), re.MULTILINE)
    data = re.findall(r'"([\w.]+)"', data_line)
    assert {name.partition("/")[0] for name in [*read_by_setup, *data]} <= set(copied)


def test_it_starts_the_service() -> None:
    program, *words = json.loads(arguments("ENTRYPOINT")[0]) + json.loads(arguments("CMD")[0])
    assert program == "dpt-zoo"
    args = _parser().parse_args(words)
    assert (args.host, str(args.port), args.models) == ("0.0.0.0", arguments("EXPOSE")[0], ["/models/model.onnx"])


def test_it_is_no_root_and_its_base_has_a_version() -> None:
    (user,) = arguments("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # a number: Kubernetes checks that it is not root
    assert re.fullmatch(r"BASE=python:\d\.\d+-slim", arguments("ARG")[0])


@pytest.mark.network
def test_the_health_check(run_service: Callable[..., Running]) -> None:
    (text,) = arguments("HEALTHCHECK")
    program, *words = json.loads(text.partition("CMD ")[2])
    assert program == "python"
    running = run_service()

    def check() -> int:
        command = [sys.executable, *(word.replace("http://127.0.0.1:8000", running.url) for word in words)]
        return subprocess.run(command, capture_output=True).returncode

    assert check() == 0
    running.service.is_stopping = True
    assert check() != 0


def test_compose() -> None:
    (service,) = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"].values()
    assert service["build"] == "."
    assert service["ports"] == [f"127.0.0.1:8000:{arguments('EXPOSE')[0]}"]
    assert [volume.split(":")[1:] for volume in service["volumes"]] == [["/models/model.onnx", "ro"]]
    assert service["environment"] == ["DPT_ZOO_API_KEYS"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]

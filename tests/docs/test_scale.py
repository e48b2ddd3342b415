"""The page on data sets of any size: its commands are those that the command accepts, and its manifest is YAML."""

import re
import shlex

import yaml
from reference_data import ROOT

from dpt_zoo.cli import _parser

PAGE = (ROOT / "docs" / "scale.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_commands() -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines() if "dpt-zoo " in line]
    (manifest,) = map(yaml.safe_load, blocks("yaml"))
    commands.append(manifest["spec"]["entrypoint"])
    parsed = [
        _parser().parse_args(shlex.split(line[line.index("dpt-zoo ") + 8 :])) for line in commands if "pip" not in line
    ]
    runners = [args.runner for args in parsed if "runner" in args]
    assert set(runners) == {"local", "rank", "ray"}
    assert len(parsed) >= 7


def test_the_cluster_has_room_for_its_workers() -> None:
    (manifest,) = map(yaml.safe_load, blocks("yaml"))
    spec = manifest["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    cores = group["maxReplicas"] * int(container["resources"]["limits"]["cpu"])
    assert f"--workers {cores}" in manifest["spec"]["entrypoint"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"

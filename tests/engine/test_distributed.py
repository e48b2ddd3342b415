"""Distributed training, and the scripts that start it."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import launched_process
import numpy as np
import pytest
import torch
from launched_process import BATCH_SIZE, DETECTORS, LAYOUTS, NUM_BATCHES
from reference_data import ROOT
from safetensors.numpy import load_file
from torch import distributed

from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.engine.distributed import process_group, runner_settings
from dpt_zoo.errors import InputError

pytestmark = pytest.mark.slow

# --- What stands in for other programs

LAUNCHED = f"""#!/bin/sh
shift 3  # -u -m dpt_zoo
exec {{python}} {Path(launched_process.__file__)} "$@"
"""
"""Replaces Python: runs the tests' own program instead of `dpt-zoo`."""

PRINTING = f"""#!{sys.executable}
import json, os, sys
print(json.dumps([sys.argv, dict(os.environ)]))
"""
"""Replaces Python: prints its arguments and environment."""

SRUN = f"""#!{sys.executable}
import json, os, subprocess, sys
end = sys.argv.index("bash")
json.dump(sys.argv[1:end], open("srun.json", "w"))
options = dict(option.split("=", 1) for option in sys.argv[1:end] if "=" in option)
job = {{"SLURM_JOB_ID": "1234567", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": options["--ntasks"]}}
tasks = []
for number in range(int(options["--ntasks"])):
    numbers = {{"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number % int(options["--ntasks-per-node"]))}}
    task = subprocess.Popen(sys.argv[end:], env={{**os.environ, **job, **numbers}}, stdout=subprocess.PIPE, text=True)
    tasks.append(task)
for task in tasks:
    print(task.communicate()[0], end="")
sys.exit(max(task.returncode for task in tasks))
"""

SCONTROL = """#!/bin/sh
[ "$*" = "show hostnames node[1-2]" ] && printf 'localhost\\nnode2\\n'
"""

NPROC = """#!/bin/sh
echo 8
"""


def add_programs(folder: Path, **programs: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def run(line: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script's command line in a folder; programs in its `bin/` come before the system's."""
    script, *arguments = shlex.split(line)
    path = script if (folder / script).exists() else ROOT / "scripts" / script
    inherited = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "CONDA_PREFIX")}
    programs = os.pathsep.join([f"{folder}/bin", str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**inherited, "PATH": programs, "VIRTUAL_ENV": sys.prefix, **variables}
    return subprocess.run([path, *arguments], cwd=folder, capture_output=True, text=True, env=environment, timeout=300)


def printed(done: subprocess.CompletedProcess[str]) -> list[tuple[list[str], dict[str, str]]]:
    """Return arguments and environment of each started Python; the first argument is the program."""
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        return sock.getsockname()[1]


# --- Processes as one


def test_the_gradients_are_the_mean_of_those_of_each_process_alone(tmp_path: Path, quick_python: Path) -> None:
    make_digit_scenes(tmp_path / "digits", num_train=NUM_BATCHES * BATCH_SIZE, num_test=1)
    remove_objects(tmp_path / "digits/annotations/instances_train2017.json", BATCH_SIZE)
    add_programs(tmp_path, launched=LAUNCHED.format(python=quick_python))
    done = run("dist_train.sh save_gradients 2", tmp_path, PYTHON_EXEC=f"{tmp_path}/launched")
    assert done.returncode == 0, done.stderr
    for topic in ("broadcast_buffers", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        assert topic not in done.stderr  # no warnings

    for detector in DETECTORS:
        alone = [load_file(tmp_path / f"{detector}_alone_{batch}.safetensors") for batch in range(NUM_BATCHES)]
        for name, gradient in alone[0].items():
            assert np.abs(gradient - alone[1][name]).max() > 1e-5, name
        for layout in LAYOUTS:
            first, second = (alone[int(batch)] for batch in layout)
            for rank in range(2):
                together = load_file(tmp_path / f"{detector}_{layout}_{rank}.safetensors")
                assert together.keys() == first.keys()
                for name, gradient in together.items():
                    mean = (first[name] + second[name]) / 2
                    np.testing.assert_allclose(gradient, mean, rtol=1e-5, atol=1e-6, err_msg=name)


def remove_objects(annotations: Path, num_images: int) -> None:
    """Remove the objects of the last images from a COCO file."""
    content = json.loads(annotations.read_text())
    emptied = {image["id"] for image in content["images"][-num_images:]}
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] not in emptied]
    annotations.write_text(json.dumps(content))


def test_they_join_again_and_leave_with_an_error(tmp_path: Path, quick_python: Path) -> None:
    add_programs(tmp_path / "bin", python=LAUNCHED.format(python=quick_python), srun=SRUN, scontrol=SCONTROL)
    done = run("slurm_train.sh gpu dpt join_twice work", tmp_path, GPUS="2", GPUS_PER_NODE="1", PORT=str(free_port()))
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {"sums": [3, 3], "joined": False}


def test_no_thread_outlives_the_interpreter(tmp_path: Path) -> None:
    add_programs(tmp_path, launched=LAUNCHED.format(python=sys.executable))
    done = run("dist_train.sh leave_a_cycle 2", tmp_path, PYTHON_EXEC=f"{tmp_path}/launched")
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        threads = json.loads((tmp_path / f"{rank}.json").read_text())
        assert threads
        assert not [name for name in threads if "gloo" in name]


@pytest.mark.parametrize("part", ["kill_the_second", "fail_in_the_second"])
def test_a_process_that_is_lost_ends_the_others(part: str, tmp_path: Path, quick_python: Path) -> None:
    add_programs(tmp_path, launched=LAUNCHED.format(python=quick_python))
    port = str(free_port())
    done = run(f"dist_train.sh {part} 2", tmp_path, PYTHON_EXEC=f"{tmp_path}/launched", PORT=port)
    assert time.time() - (tmp_path / "1.pid").stat().st_mtime < 30  # torchrun kills what is not gone by then
    assert done.returncode != 0
    for rank in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"{rank}.pid").read_text()), 0)


# --- The environment of a process

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which torchrun's variables are set."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize("unset", [("WORLD_SIZE", "RANK", "LOCAL_RANK"), tuple(TORCHRUN), ()])
def test_one_process_stays_alone(unset: tuple[str, ...], environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WORLD_SIZE", "1")
    for name in unset:
        environment.delenv(name)
    with process_group():
        assert not distributed.is_initialized()
        assert runner_settings() == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, "") for name in TORCHRUN), ("RANK", "2"), ("RANK", "-1"), ("WORLD_SIZE", "two"), ("MASTER_PORT", "http")],
)
def test_half_an_environment_is_refused(name: str, value: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv(name, value)
    with pytest.raises(InputError, match=rf"\b{name}={value}[,:].*scripts/dist_train.sh or torchrun"), process_group():
        pass


def test_more_processes_than_gpus_are_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setattr(torch.cuda, "is_available", lambda: True)
    environment.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"process 1 needs GPU 1.*start at most 1"), process_group():
        pass


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_several_processes_cannot_share_one_device(device: str, environment: pytest.MonkeyPatch) -> None:
    message = f"device {device!r} cannot be used by several processes"
    with pytest.raises(InputError, match=message), process_group(device):
        pass


def test_the_device_of_a_process_alone() -> None:
    with process_group("cpu") as device:
        assert device == torch.device("cpu")
        with process_group("cpu") as inner:
            assert inner == device


def test_processes_that_cannot_meet_say_why(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RANK", "0")
    with socket.create_server(("", 0)) as server:
        for port in (str(server.getsockname()[1]), "70000"):
            environment.setenv("MASTER_PORT", port)
            with pytest.raises(InputError, match=rf"cannot meet at localhost:{port}: .*try another"), process_group():
                pass


# --- The scripts


@pytest.mark.parametrize(
    ("line", "variables", "torchrun", "command"),
    [
        ("dist_train.sh c.py 2", {}, "--standalone --local-addr=localhost --nproc-per-node=2", "train c.py"),
        (
            "dist_train.sh 'my c.py' 8 --amp --cfg-options 'a=[1, 2]'",
            {"PORT": "29501"},
            "--nnodes=1 --node-rank=0 --master-addr=127.0.0.1 --master-port=29501 --nproc-per-node=8",
            "train 'my c.py' --amp --cfg-options 'a=[1, 2]'",
        ),
        (
            "dist_test.sh c.py w.pth 8 --tasks bbox segm",
            {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0"},
            "--nnodes=2 --node-rank=1 --master-addr=node0 --master-port=29500 --nproc-per-node=8",
            "evaluate c.py --weights w.pth --tasks bbox segm",
        ),
    ],
)
def test_dist(line: str, variables: dict[str, str], torchrun: str, command: str, tmp_path: Path) -> None:
    add_programs(tmp_path / "bin", python=PRINTING)
    (([_, *arguments], environment),) = printed(run(line, tmp_path, **variables))
    assert arguments == shlex.split(f"-m torch.distributed.run {torchrun} -m dpt_zoo {command}")
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


@pytest.mark.parametrize(
    ("line", "variables", "srun", "command"),
    [
        (
            "slurm_train.sh gpu dpt 'my c.py' runs/1 --cfg-options 'a=[1, 2]'",
            {},
            "--gres=gpu:8 --ntasks=8 --ntasks-per-node=8 --cpus-per-task=5 --kill-on-bad-exit=1",
            "train 'my c.py' --work-dir runs/1 --cfg-options 'a=[1, 2]'",
        ),
        (
            "slurm_test.sh gpu dpt c.py w.pth --tasks bbox segm",
            {"GPUS": "4", "GPUS_PER_NODE": "2", "CPUS_PER_TASK": "3", "SRUN_ARGS": "--time=9 --mem=0", "PORT": "29501"},
            "--gres=gpu:2 --ntasks=4 --ntasks-per-node=2 --cpus-per-task=3 --kill-on-bad-exit=1 --time=9 --mem=0",
            "evaluate c.py --weights w.pth --tasks bbox segm",
        ),
    ],
)
def test_slurm(line: str, variables: dict[str, str], srun: str, command: str, tmp_path: Path) -> None:
    add_programs(tmp_path / "bin", python=PRINTING, srun=SRUN, scontrol=SCONTROL)
    tasks = printed(run(line, tmp_path, **variables))
    assert json.loads((tmp_path / "srun.json").read_text()) == ["-p", "gpu", "--job-name=dpt", *srun.split()]
    num_tasks, per_node = int(variables.get("GPUS", 8)), int(variables.get("GPUS_PER_NODE", 8))
    ranks = []
    for [_, *arguments], environment in tasks:
        assert arguments == shlex.split(f"-u -m dpt_zoo {command}")
        assert environment["WORLD_SIZE"] == str(num_tasks)
        assert environment["MASTER_ADDR"] == "localhost"
        assert environment["MASTER_PORT"] == variables.get("PORT", "24567")  # of job 1234567
        assert environment["OMP_NUM_THREADS"] == variables.get("CPUS_PER_TASK", "5")
        ranks.append((int(environment["RANK"]), int(environment["LOCAL_RANK"])))
    assert sorted(ranks) == [(rank, rank % per_node) for rank in range(num_tasks)]


@pytest.mark.parametrize(
    ("num_processes", "variables", "expected"),
    [(1, {}, "8"), (3, {}, "2"), (9, {}, "1"), (3, {"OMP_NUM_THREADS": "7"}, "7")],
)
def test_processes_share_the_threads(
    num_processes: int, variables: dict[str, str], expected: str, tmp_path: Path
) -> None:
    add_programs(tmp_path / "bin", python=PRINTING, nproc=NPROC)
    ((_, environment),) = printed(run(f"dist_train.sh c.py {num_processes}", tmp_path, **variables))
    assert environment["OMP_NUM_THREADS"] == expected


@pytest.mark.parametrize(
    ("active", "has_venv", "expected"),
    [("", True, "clone/.venv/bin/python"), ("", False, "bin/python"), ("/some/environment", True, "bin/python")],
)
def test_the_python_is_that_of_the_environment(active: str, has_venv: bool, expected: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "clone/scripts")
    add_programs(tmp_path / "bin", python=PRINTING)
    if has_venv:
        add_programs(tmp_path / "clone/.venv/bin", python=PRINTING)
    done = run("clone/scripts/dist_train.sh c.py 2", tmp_path, VIRTUAL_ENV=active, CDPATH="/")
    (([python, *_], environment),) = printed(done)
    assert python == str(tmp_path / expected)
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path / "clone")


@pytest.mark.parametrize(
    ("line", "usage"),
    [
        ("dist_train.sh", "CONFIG NUM_GPUS [options of dpt-zoo train]"),
        ("dist_train.sh c.py", "CONFIG NUM_GPUS [options of dpt-zoo train]"),
        ("dist_train.sh c.py 0", "CONFIG NUM_GPUS [options of dpt-zoo train]"),
        ("dist_train.sh c.py --amp 2", "CONFIG NUM_GPUS [options of dpt-zoo train]"),
        ("dist_test.sh c.py 2", "CONFIG WEIGHTS NUM_GPUS [options of dpt-zoo evaluate]"),
        ("dist_test.sh c.py w.pth two", "CONFIG WEIGHTS NUM_GPUS [options of dpt-zoo evaluate]"),
        ("slurm_train.sh gpu dpt c.py", "PARTITION JOB_NAME CONFIG WORK_DIR [options of dpt-zoo train]"),
        ("slurm_test.sh gpu dpt c.py", "PARTITION JOB_NAME CONFIG WEIGHTS [options of dpt-zoo evaluate]"),
    ],
)
def test_usage(line: str, usage: str, tmp_path: Path) -> None:
    done = run(line, tmp_path)
    script = ROOT / "scripts" / line.split()[0]
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"usage: {script} {usage}\n")

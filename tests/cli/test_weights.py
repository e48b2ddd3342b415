"""The commands for weights: download, import, cache, convert, publish, info."""

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import WRITER, HubServer
from reference_data import ROOT
from running import Run
from safetensors.torch import load_file
from web_server import WebServer

import dpt_zoo
from dpt_zoo.weights.reading import read_weights

pytestmark = [pytest.mark.slow, pytest.mark.network]

AUTHORS_SHA256 = "3cf3cc9db91060879e7cb8c79063731b7339fd67a27e2876156118d3ee61eaae"
AUTHORS_BYTES = 298_866_480


@pytest.fixture
def mirror(tmp_path: Path, authors_file: Path, rule_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror with the weights of two models, and no network."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "retinanet_dpt_t_1x.pth").symlink_to(authors_file)
    (folder / "mrcnn_dpt_t_1x.safetensors").symlink_to(rule_file)
    monkeypatch.setenv("DPT_ZOO_MIRROR", str(folder))
    monkeypatch.setenv("DPT_ZOO_OFFLINE", "1")
    return folder


class TestDownload:
    def test_where_one_fails_the_others_are_done(self, run: Run, mirror: Path, empty_cache: Path) -> None:
        names = ["retinanet_dpt_t_1x", "retinanet_dpt_s_1x", "mrcnn_dpt_t_1x"]
        status, out, err = run("download", *names, "--keep-original")
        rows = [line.split() for line in out.splitlines()]
        assert status == 2
        assert rows == [
            ["name", "state", "size", "file"],
            ["retinanet_dpt_t_1x", "fetched", "99.6", "MB", str(empty_cache / "retinanet_dpt_t_1x.safetensors")],
            ["retinanet_dpt_s_1x", "FAILED", "-", "-"],
            ["mrcnn_dpt_t_1x", "fetched", "139.2", "MB", str(empty_cache / "mrcnn_dpt_t_1x.safetensors")],
        ]
        first, *others = err.splitlines()
        assert first == "dpt-zoo: retinanet_dpt_s_1x: its weights could not be fetched"
        assert others[-1] == "  dpt-zoo import retinanet_dpt_s_1x FILE"
        assert (empty_cache / "retinanet_dpt_t_1x.pth").stat().st_size == AUTHORS_BYTES
        assert "was cached" in run("download", names[0])[1]

    def test_names(self, run: Run, mirror: Path) -> None:
        assert run("download")[2] == "dpt-zoo: no model is named: give names, patterns such as 'mrcnn*', or --all\n"
        assert "did you mean mrcnn_dpt_t_1x?" in run("download", "mrcnn_dpt_t")[2]
        assert "jobs must be at least 1" in run("download", "mrcnn_dpt_t_1x", "--jobs", 0)[2]
        status, out, _ = run("download", "--all", "dpt_tiny")
        assert status == 2
        assert [line.split()[0] for line in out.splitlines()] == ["name", *dpt_zoo.list_models(), "dpt_tiny"]

    def test_another_folder(self, run: Run, mirror: Path, empty_cache: Path, tmp_path: Path) -> None:
        assert run("download", "mrcnn_dpt_t_1x", "--cache-dir", tmp_path / "elsewhere")[0] == 0
        assert (tmp_path / "elsewhere" / "mrcnn_dpt_t_1x.safetensors").is_file() and not empty_cache.exists()

    def test_what_was_damaged_in_the_cache_is_fetched_again(
        self,
        run: Run,
        mirror: Path,
        empty_cache: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        run("download", "mrcnn_dpt_t_1x")
        path = empty_cache / "mrcnn_dpt_t_1x.safetensors"
        good = path.read_bytes()
        flip_a_bit(path)
        status, out, err = run("cache", "verify")
        assert (status, out) == (2, "") and "this is another file than expected" in err
        status, out, err = run("download", "mrcnn_dpt_t_1x", "--verify")
        assert (status, err) == (0, "") and path.read_bytes() == good
        assert f"it is now {empty_cache / 'quarantine' / 'mrcnn_dpt_t_1x'}" in caplog.text
        assert run("cache", "verify")[:2] == (0, "mrcnn_dpt_t_1x: unchanged\n")

    def test_bars_on_a_terminal(self, authors_file: Path, tmp_path: Path) -> None:
        with WebServer({"/retinanet_dpt_t_1x.pth": authors_file.read_bytes()}) as server:
            environment = {**os.environ, "DPT_ZOO_MIRROR": server.url, "TERM": "xterm", "COLUMNS": "100"}
            main, terminal = pty.openpty()
            command = [sys.executable, "-m", "dpt_zoo", "download", "retinanet_dpt_t_1x"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=environment)
            os.close(terminal)
            shown = b""
            try:
                while chunk := os.read(main, 1 << 16):
                    shown += chunk
            except OSError:  # the end of a terminal
                pass
            assert process.wait() == 0
        assert re.search(rb"retinanet_dpt_t_1x.*298\.9/298\.9 MB.*[MG]B/s", shown)


class TestImport:
    def test_a_file_fetched_by_hand(self, run: Run, authors_file: Path, empty_cache: Path) -> None:
        status, out, err = run("import", "retinanet_dpt_t_1x", authors_file)
        path = empty_cache / "retinanet_dpt_t_1x.safetensors"
        assert (status, out, err) == (0, f"retinanet_dpt_t_1x: checked and converted, {path}\n", "")
        assert authors_file.stat().st_size == AUTHORS_BYTES

    def test_another_models_file(self, run: Run, authors_file: Path, empty_cache: Path) -> None:
        status, _, err = run("import", "mrcnn_dpt_t_1x", authors_file)
        assert status == 2 and err.count("\n") == 1
        assert "these are not mrcnn_dpt_t_1x's tensors" in err and "those of retinanet_dpt_t_1x" in err
        assert authors_file.is_file() and not (empty_cache / "mrcnn_dpt_t_1x.safetensors").exists()

    def test_no_file(self, run: Run, tmp_path: Path) -> None:
        status, _, err = run("import", "mrcnn_dpt_t_1x", tmp_path / "none.pth")
        assert (status, err.count("\n")) == (2, 1) and str(tmp_path / "none.pth") in err


class TestCache:
    def test_what_is_there_and_its_removal(self, run: Run, mirror: Path, empty_cache: Path) -> None:
        assert run("cache", "list") == (0, f"{empty_cache}\n", "")
        run("download", "mrcnn_dpt_t_1x", "retinanet_dpt_t_1x")
        rows = [line.split() for line in run("cache", "list")[1].splitlines()[1:]]
        assert rows == [
            ["name", "cached", "size", "location"],
            ["mrcnn_dpt_t_1x", "yes", "139.2", "MB", str(mirror / "mrcnn_dpt_t_1x.safetensors")],
            ["retinanet_dpt_t_1x", "yes", "99.6", "MB", str(mirror / "retinanet_dpt_t_1x.pth")],
        ]
        assert "no model is named" in run("cache", "remove")[2]
        assert "'mrcnn' is not in the cache" in run("cache", "remove", "mrcnn")[2]
        assert run("cache", "remove", "mrcnn_dpt_t_1x")[:2] == (0, "mrcnn_dpt_t_1x: removed\n")
        assert not (empty_cache / "mrcnn_dpt_t_1x.safetensors").exists()
        assert run("cache", "remove", "--all", "--forget")[0] == 0
        assert run("cache", "list")[1] == f"{empty_cache}\n"

    def test_the_first_download_is_remembered_until_it_is_forgotten(
        self,
        run: Run,
        mirror: Path,
        rule_file: Path,
        empty_cache: Path,
    ) -> None:
        run("download", "mrcnn_dpt_t_1x")
        run("cache", "remove", "mrcnn_dpt_t_1x")
        changed = mirror / "mrcnn_dpt_t_1x.safetensors"
        changed.unlink()
        shutil.copy(rule_file, changed)
        flip_a_bit(changed)
        status, _, err = run("download", "mrcnn_dpt_t_1x")
        assert status == 2 and "this is another file than expected" in err
        assert not (empty_cache / "mrcnn_dpt_t_1x.safetensors").exists()
        run("cache", "remove", "mrcnn_dpt_t_1x", "--forget")
        assert run("download", "mrcnn_dpt_t_1x")[0] == 0


class TestInfo:
    def test_what_stands(self, run: Run, authors_file: Path, empty_cache: Path) -> None:
        run("import", "retinanet_dpt_t_1x", authors_file)
        out = run("info", "retinanet_dpt_t_1x")[1]
        assert re.search(rf"sha256 +{AUTHORS_SHA256}\n +recorded at the first download, \d{{4}}-\d\d-\d\d\n", out)
        assert re.search(r"size +298,866,480 bytes\n", out)
        assert re.search(r"structure sha256 2e0219b3\w+\n +from the manifest\n", out)
        assert out.endswith("hash, structure and finite numbers were checked\n")
        os.utime(empty_cache / "retinanet_dpt_t_1x.safetensors")
        assert "not checked, or changed since" in run("info", "retinanet_dpt_t_1x")[1]

    def test_a_classifier(self, run: Run) -> None:
        status, out, _ = run("info", "dpt_small")
        assert status == 0 and "DPT-Small ImageNet-1k classifier" in out and "top-1 accuracy, percent | 81.0" in out


class TestConvert:
    def test_there_and_back(self, run: Run, authors_file: Path, tmp_path: Path) -> None:
        there, back = tmp_path / "there.safetensors", tmp_path / "back.pth"
        assert run("convert", authors_file, there) == (0, f"{there}: 213 tensors, 99.6 MB\n", "")
        assert run("convert", there, back, "--to", "mmdet2")[0] == 0
        authors = torch.load(authors_file, weights_only=True, mmap=True)["state_dict"]
        ours = torch.load(back, weights_only=True, mmap=True)
        assert list(ours["state_dict"]) and ours["state_dict"].keys() == authors.keys()
        assert all(torch.equal(ours["state_dict"][name], tensor) for name, tensor in authors.items())
        assert ours["meta"]["CLASSES"][:2] == ("person", "bicycle")

    def test_a_models_name_and_half_precision(self, run: Run, mirror: Path, tmp_path: Path) -> None:
        assert run("convert", "mrcnn_dpt_t_1x", tmp_path / "half.safetensors", "--half")[0] == 0
        assert load_file(tmp_path / "half.safetensors")["backbone.pos_embed1"].dtype == torch.float16

    def test_what_is_no_name_and_no_file(self, run: Run, tmp_path: Path) -> None:
        assert "there is no model 'none.pth'" in run("convert", "none.pth", tmp_path / "out.safetensors")[2]


def test_publish_and_load_back(mirror: Path, rule_file: Path, tmp_path: Path) -> None:
    """`dpt-zoo publish`, then `hf://` on a machine with an empty cache."""
    with HubServer() as hub:
        online = {key: value for key, value in os.environ.items() if key != "DPT_ZOO_OFFLINE"}
        environment = {**online, **hub.environment(tmp_path / "home", WRITER)}
        command = [sys.executable, "-m", "dpt_zoo", "publish", "mrcnn_dpt_t_1x", "--repo", "someone/mrcnn"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{hub.url}/someone/mrcnn/commit/")
        assert set(hub.files("someone/mrcnn")) >= {"model.safetensors", "config.py", "README.md"}
        load = (
            "import dpt_zoo; model = dpt_zoo.create_model('mrcnn_dpt_t_1x', weights='hf://someone/mrcnn/model.safetensors');"
            "print(model.neck.fpn_convs[0].conv.bias.sum().item())"
        )
        environment["DPT_ZOO_CACHE"] = str(tmp_path / "another cache")
        done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, env=environment)
    expected = read_weights(rule_file).tensors["neck.fpn_convs.0.conv.bias"].sum().item()
    assert (done.returncode, done.stderr, float(done.stdout)) == (0, "", expected)


def test_the_commands_of_the_page_on_weights(mirror: Path, rule_file: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "weights.md").read_text()
    commands = re.search(r"```bash\n(.*?)```", page, re.DOTALL)
    assert commands
    (tmp_path / "FILE").symlink_to(rule_file)
    with HubServer() as hub:
        online = {key: value for key, value in os.environ.items() if key != "DPT_ZOO_OFFLINE"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**online, **hub.environment(tmp_path / "home", WRITER), "PATH": path}
        script = commands[1].replace("--all", "mrcnn_dpt_t_1x")  # the mirror has no more
        done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert "model.safetensors" in hub.files("org/name")
    assert (tmp_path / "out.pth").is_file()


def flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1000, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))

"""The three ways to use the project: a torch.hub checkout, an editable install (as in these tests), and a wheel."""

import json
import re
import subprocess
import zipfile
from pathlib import Path

import pytest
from reference_data import PHOTO, ROOT
from small_data import make_coco

import dpt_zoo
from dpt_zoo.manifest.records import read_manifest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def run_python(python: Path, code: str, cwd: Path) -> str:
    """Run code in a new process and return what it printed; it must print nothing on standard error."""
    done = subprocess.run([python, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


class TestHub:
    def test_list_and_help(self, bare_python: Path, checkout: Path, tmp_path: Path) -> None:
        hub = tmp_path / "hub"
        hub.mkdir()
        (hub / "someone_dpt-zoo_main").symlink_to(checkout)  # where torch.hub keeps what it fetched from GitHub
        code = f"""
import contextlib, io, json, sys, torch
torch.hub.set_dir({str(hub)!r})
repo = dict(github="someone/dpt-zoo:main", skip_validation=True, trust_repo=True)
with contextlib.redirect_stderr(io.StringIO()):  # "Using cache found in ..."
    answers = torch.hub.list(**repo), *(torch.hub.help(model=name, **repo) for name in ("mrcnn_dpt_t_1x", "dpt_tiny"))
print(json.dumps(answers))
assert "mmdet" not in sys.modules
"""
        names, detector, classifier = json.loads(run_python(bare_python, code, tmp_path))
        assert sorted(names) == sorted([*read_manifest().records, "train", "evaluate"])
        assert detector.startswith("Mask R-CNN DPT-Tiny 1x: 40.2 box AP, 37.7 mask AP (COCO val2017).")
        assert classifier.startswith("DPT-Tiny ImageNet-1k classifier: 77.4 % top-1 accuracy.")

    def test_all_entry_points_need_the_dependencies_only(
        self, bare_python: Path, checkout: Path, tmp_path: Path
    ) -> None:
        """Each entry point works, and the project imports no package that hubconf.dependencies does not name."""
        make_coco(tmp_path / "data")
        make_coco(tmp_path / "data", split="val2017")
        code = f"""
import builtins, contextlib, io, sys, torch
sys.path.insert(0, {str(checkout)!r})
import hubconf
real, missing = builtins.__import__, set()
def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    top = name.partition(".")[0]
    is_ours = str((globals or {{}}).get("__name__")).partition(".")[0] == "dpt_zoo" and level == 0
    if is_ours and top not in {{*sys.stdlib_module_names, "dpt_zoo", *hubconf.dependencies}}:
        missing.add(top)
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = guarded
def load(*args, **kwargs):
    return torch.hub.load({str(checkout)!r}, *args, source="local", **kwargs)
with contextlib.redirect_stderr(io.StringIO()):  # its progress
    for name in ("retinanet_dpt_nano_digits", "mrcnn_dpt_nano_digits"):
        load(name)
    model = load("mrcnn_dpt_t_1x", pretrained=False, num_classes=3)
    classifier = load("dpt_tiny", pretrained=False, num_classes=3)
    options = dict(data_root="data", workers=0)
    weights = load("train", "retinanet_dpt_nano_digits", epochs=1, work_dir="training", **options)
    evaluation = load("evaluate", "retinanet_dpt_nano_digits", weights=weights, work_dir="evaluation", **options)
import dpt_zoo
print(type(model).__name__, dpt_zoo.__file__, model.cfg.filename, classifier.head.out_features)
print(*evaluation.metrics["bbox"])
print(*missing)
"""
        loaded, metrics, missing = run_python(bare_python, code, tmp_path).splitlines()
        package, config = checkout / "dpt_zoo" / "__init__.py", checkout / "configs/mask_rcnn_dpt_t_fpn_1x_coco.py"
        assert loaded.split() == ["MaskRCNN", str(package), str(config), "3"]
        assert metrics == "mAP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl"
        assert missing == ""

    def test_each_entry_point_is_its_model(self) -> None:
        import hubconf

        for name, record in read_manifest().records.items():
            entry_point = getattr(hubconf, name)
            assert entry_point.__name__ == name
            assert entry_point.__doc__.startswith(record.summary)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as an installer unpacks a pure one."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


OUTPUTS = {"run.json", "detections.jsonl", "detections.json", "pictures"}
"""What `dpt-zoo detect` writes unless told otherwise."""


class TestWheel:
    def test_it_works_elsewhere_without_the_network(
        self, bare_python: Path, installed: Path, rule_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DPT_ZOO_OFFLINE", "1")
        code = f"""
import sys; sys.path.insert(0, {str(installed)!r})
import dpt_zoo
from dpt_zoo.cli import main
print(dpt_zoo.get_model_info("mrcnn_dpt_t_1x").config_path, dpt_zoo.__file__)
main(["detect", {str(PHOTO)!r}, "--model", "mrcnn_dpt_t_1x", "--weights", {str(rule_file)!r}, "--work-dir", "out"])
for name in {list(read_manifest().demos)!r}:
    main(["detect", {str(PHOTO)!r}, "--model", name, "--work-dir", name])
"""
        config, package = run_python(bare_python, code, tmp_path).splitlines()[0].split()
        assert Path(config).is_file() and Path(config).is_relative_to(installed / "dpt_zoo" / "_data")
        assert Path(package).is_relative_to(installed)
        for name in ("out", *read_manifest().demos):
            assert {path.name for path in (tmp_path / name).iterdir()} == OUTPUTS

    def test_metadata(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            (metadata,) = (archive.read(name).decode() for name in names if name.endswith("METADATA"))
            (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
        assert re.search(f"^Version: {re.escape(dpt_zoo.__version__)}$", metadata, re.M)
        assert "dpt-zoo = dpt_zoo.cli:main" in entry_points
        assert len([name for name in names if re.fullmatch(r"dpt_zoo/_data/configs/\w[\w-]+\.py", name)]) == 12
        demos = read_manifest().demos.values()
        files = {path for demo in demos for path in (demo.config, demo.log, f"configs/demo/{demo.name}.safetensors")}
        assert set(names) > {f"dpt_zoo/_data/{path}" for path in files}
        assert any(name.endswith("LICENSE") for name in names)
        assert {name.split("/")[0] for name in names} == {"dpt_zoo", f"dpt_zoo-{dpt_zoo.__version__}.dist-info"}


def test_versions_agree() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {dpt_zoo.__version__}" in citation
    assert f"## {dpt_zoo.__version__}" in changelog

"""Runs on Ray: the same files, whatever dies. Ray needs an idle machine to start, so these tests run one by one."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from bulk_data import read_parts
from reference_data import ROOT
from running import Run

from dpt_zoo import RayDetector
from dpt_zoo.bulk.detect import DatasetRun, detect_dataset
from dpt_zoo.bulk.results import Results
from dpt_zoo.bulk.storage import Folder
from dpt_zoo.errors import WeightsError

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # otherwise, it writes a token to the user's folder
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]))
        hook = {"worker_process_setup_hook": "dying_worker.prepare"}
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False, runtime_env=hook)
        yield
        ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_the_same_files(finished: DatasetRun, scenes: Path, model: Path, tmp_path: Path) -> None:
    run = detect_dataset(scenes, tmp_path, model=model, images_per_part=5, runner="ray")
    assert (run.num_parts, run.counts, run.set_aside) == (4, finished.counts, {})
    assert read_parts(tmp_path) == read_parts(finished.output)


@pytest.mark.usefixtures("cluster")
def test_a_part_that_kills_its_worker(scenes: Path, model: Path, tmp_path: Path, run: Run) -> None:
    for name in ("1.png", "2.png", "poison.png", "zero.png"):
        (tmp_path / name).symlink_to(scenes / "000001.png")
    command = ("detect-dataset", tmp_path, "--output", tmp_path / "out", "--model", model, "--images-per-part", 2)
    status, output, errors = run(*command, "--runner", "ray", "--workers", 1)
    assert (status, output.splitlines()[-1]) == (2, f"{tmp_path}/out: 1 part")
    assert "part-000001-" in errors and errors.endswith(": its worker died (ActorDiedError)\n")
    assert len((tmp_path / "deaths").read_text().splitlines()) == 3


@pytest.mark.usefixtures("cluster")
def test_a_pipeline_of_ray_data(finished: DatasetRun, scenes: Path, model: Path) -> None:
    detected = (
        ray.data.read_binary_files(str(scenes), include_paths=True, override_num_blocks=1)
        .map_batches(RayDetector, fn_constructor_kwargs={"model": str(model), "num_threads": 1}, concurrency=1)
        .take_all()
    )
    rows = {row["path"]: row for row in detected}
    for row in Results(Folder(finished.output)):
        boxes = None if row.detections is None else row.detections.boxes.tolist()
        assert rows[row.uri]["boxes"] == boxes
        assert (rows[row.uri]["error"] is None) == (row.detections is not None)


def test_what_an_actor_raises_is_raised_here() -> None:
    from dpt_zoo.bulk.ray_runner import _cause

    raised = pickle.loads(pickle.dumps(WeightsError("model.onnx: damaged")))
    reported = ray.exceptions.RayTaskError("describe", "a traceback", raised)
    assert repr(_cause(reported.as_instanceof_cause())) == repr(raised)
    other = ray.exceptions.RayTaskError("describe", "a traceback", KeyError("a defect"))
    assert _cause(other) is other

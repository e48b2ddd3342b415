"""The results table, and the process that evaluates each detector."""

import functools
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from reference_data import ROOT
from running import Run, start_quickly
from update_readme_tables import update_tables

from dpt_zoo.data.digits import make_digit_scenes
from dpt_zoo.errors import InputError
from dpt_zoo.evaluation.result import Evaluation
from dpt_zoo.manifest.records import PublishedDetector, get_detector_info, list_models, read_manifest
from dpt_zoo.reproduction.table import COCO, DIGITS, Cell, Row

Json = dict[str, Any]

NAME, OTHER = "mrcnn_dpt_t_1x", "retinanet_dpt_t_1x"
DEMO, OTHER_DEMO = "mrcnn_dpt_nano_digits", "retinanet_dpt_nano_digits"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set's folder, with nothing in it: what is evaluated already needs no more."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def evaluation(name: str, data: Path, off: float = 0.0, **changes: Any) -> Json:
    """What an evaluation writes for a detector whose metrics are `off` above the published ones."""
    record = get_detector_info(name)
    known = record.metrics
    of = COCO if isinstance(record, PublishedDetector) else DIGITS
    return {
        "metrics": {kind: {each: value + off for each, value in row.items()} for kind, row in known.items()},
        "per_class": {},
        "num_images": of.num_images,
        "limit": None,
        "amp": False,
        "max_detections": 100,
        "skipped": [],
        "weights": {"path": str(data.parent / "gone.safetensors"), "sha256": "ab12"},
        "annotations": {"path": str(data / "annotations.json"), "sha256": of.annotations_sha256},
        "seconds": {"detecting": 1250.0, "measuring": 6.5},
        "processes": 2,
        "device": "A GPU",
        "runtime": "PyTorch 2.15.0",
        "versions": {"torch": "2.15.0"},
        "thresholds": None,
        **changes,
    }


def prepare(work: Path, name: str, content: Json) -> Path:
    path = work / name / "evaluation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def rows_of(markdown: str) -> dict[str, list[str]]:
    """The cells of the tables of metrics, by the detectors' names."""
    table = re.findall(r"^\| `(\w+)` \| (.*) \|$", markdown.partition("\n## ")[0], re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in table}


# --- The README's tables


END = "<!-- end of table -->"
PLACES = (
    f"# A\n<!-- table: retinanet -->\nold\n{END}\n<!-- table: mask_rcnn -->\n{END}\nb\n<!-- table: demos -->{END}\nc\n"
)


def test_tables_are_written_where_they_belong(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(PLACES)
    update_tables(readme)
    text = readme.read_text()
    assert [line for line in text.splitlines() if line and line[0] not in "|<"] == ["# A", "b", "c"]
    published, demos = rows_of(text.partition("\nb\n")[0]), rows_of(text.partition("\nb\n")[2])
    assert (list(published), list(demos)) == (list_models(), list(read_manifest().demos))
    row = ["Mask R-CNN DPT-Tiny", "34.8 M", "1x", "40.2", "62.8", "43.8", "37.7", "59.8", "40.4"]
    assert published["mrcnn_dpt_t_1x"] == row
    row = ["RetinaNet DPT-Medium", "55.9 M", "MS+3x", "43.7", "64.6", "46.4", "27.2", "47.0", "58.4"]
    assert published["retinanet_dpt_m_ms3x"] == row
    update_tables(readme)
    assert readme.read_text() == text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        PLACES.replace("demos", "others").encode(),
        PLACES.replace(f"{END}\nb", "b").encode(),
        PLACES.replace("c\n", f"<!-- table: demos -->\n{END}").encode(),
        PLACES.replace("# A", "\xe9").encode("latin-1"),
    ],
)
def test_a_readme_without_their_places_is_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_bytes(content)
    with pytest.raises(InputError, match=r"README\.md (needs one line <!-- table|cannot be read)"):
        update_tables(readme)
    assert readme.read_bytes() == content


# --- Verdicts


@pytest.mark.parametrize(
    ("measured", "tenths", "matches"),
    [
        (40.2, 0, True),
        (40.1, -1, True),
        (40.3, 1, True),
        (40.0501, -1, True),
        (40.0499, -2, False),
        (40.3499, 1, True),
        (40.3501, 2, False),
        (None, None, False),
    ],
)
def test_a_metric_matches_within_a_tenth(measured: float | None, tenths: int | None, matches: bool) -> None:
    assert (Cell(40.2, measured).tenths, Cell(40.2, measured).matches) == (tenths, matches)


def test_no_verdict_hangs_on_how_numbers_are_stored() -> None:
    for tenths in range(1000):
        for difference in (-2, -1, 0, 1, 2):
            assert Cell(tenths / 10, (tenths + difference) / 10).tenths == difference


# --- The table of what was evaluated already


def test_all_twelve_match(data: Path, work: Path, run: Run) -> None:
    for name in list_models():
        prepare(work, name, evaluation(name, data, off=0.1 if "mrcnn" in name else -0.04))
    status, printed, errors = run("reproduce", "--data-root", data, "--work-dir", work)
    summary = "All 72 metrics are within 0.1 of the published ones."
    assert (status, printed) == (0, f"{summary}\n{work / 'results.md'}\n")
    assert f"{NAME}: box AP 40.3 (published: 40.2), mask AP 37.8 (published: 37.7)\n" in errors

    markdown = (work / "results.md").read_text()
    assert markdown.startswith(f"# The published results, measured again\n\n{summary}\n")
    rows = rows_of(markdown)
    assert list(rows) == list_models()
    assert rows[NAME][:4] == ["Mask R-CNN DPT-Tiny", "34.8 M", "1x", "40.3 (40.2) +0.1 ✓"]
    published = (39.5, 60.4, 41.8, 23.7, 43.2, 52.2)
    assert rows[OTHER][3:] == [f"{value} ({value}) +0.0 ✓" for value in published]
    assert f"| `{NAME}` | 5,000 | 0.250 | 2 | A GPU | PyTorch 2.15.0 |" in markdown

    content = json.loads((work / "results.json").read_text())
    assert (content["is_reproduction"], content["caveat"], content["summary"]) == (True, None, summary)
    assert content["options"]["data_root"] == str(data)
    detector = content["detectors"][NAME]
    assert detector["cells"]["segm"]["AP75"] == {
        "published": 40.4,
        "measured": pytest.approx(40.5),
        "difference": 0.1,
        "matches": True,
    }
    assert detector["seconds_per_image"] == 0.25
    facts = ("weights", "annotations", "seconds", "processes", "device", "runtime", "versions", "num_images", "skipped")
    assert all(detector[fact] == evaluation(NAME, data)[fact] for fact in facts)
    with Image.open(work / "results.png") as picture:
        assert picture.width > 1000


def test_one_metric_differs(data: Path, work: Path, run: Run) -> None:
    content = evaluation(NAME, data)
    content["metrics"]["segm"]["AP50"] -= 0.2
    prepare(work, NAME, content)
    prepare(work, OTHER, evaluation(OTHER, data))
    status, printed, _ = run("reproduce", NAME, OTHER, "--data-root", data, "--work-dir", work)
    assert (status, printed.splitlines()[0]) == (1, "1 of 12 metrics differ by more than 0.1 from the published ones.")
    markdown = (work / "results.md").read_text()
    assert markdown.count("✗") == 2  # one of them in the legend
    assert rows_of(markdown)[NAME][7] == "59.6 (59.8) -0.2 ✗"
    cells = json.loads((work / "results.json").read_text())["detectors"][NAME]["cells"]
    assert [name for name, cell in cells["segm"].items() if not cell["matches"]] == ["AP50"]


def test_metrics_of_small_objects_count(data: Path, work: Path, run: Run) -> None:
    content = evaluation(OTHER, data)
    content["metrics"]["bbox"]["APs"] = None
    prepare(work, OTHER, content)
    assert run("reproduce", OTHER, "--data-root", data, "--work-dir", work)[0] == 1
    assert "| - (23.7) ✗ | 43.2 (43.2) +0.0 ✓ |" in (work / "results.md").read_text()


@pytest.mark.parametrize(
    ("names", "changes", "options", "caveat"),
    [
        ([NAME], {"limit": 5, "num_images": 5}, ["--limit", 5], "only the first 5 images were evaluated"),
        ([NAME], {"num_images": 4999}, [], "the data are not COCO val2017"),
        ([OTHER, NAME], {"annotations": {"path": "", "sha256": "ab"}}, [], "the data are not COCO val2017"),
        ([DEMO], {"num_images": 5}, [], "the data are not the 500 digit scenes of seed 0"),
    ],
)
def test_what_is_no_reproduction_has_no_verdicts(
    names: list[str], changes: Json, options: list[object], caveat: str, data: Path, work: Path, run: Run
) -> None:
    for name in names:
        content = evaluation(name, data, off=-30, **changes)
        content["annotations"]["path"] = str(data / "annotations.json")
        prepare(work, name, content)
    status, printed, _ = run("reproduce", *names, "--data-root", data, "--work-dir", work, *options)
    assert (status, printed.splitlines()[0]) == (0, f"This is not a reproduction: {caveat}.")
    markdown = (work / "results.md").read_text()
    assert markdown.startswith(
        f"# Not a reproduction of the published results\n\nThis is not a reproduction: {caveat}.\n"
    )
    assert not set("✓✗") & set(markdown)
    assert "-30" not in markdown
    results = json.loads((work / "results.json").read_text())
    assert (results["is_reproduction"], results["caveat"]) == (False, caveat)
    for detector in results["detectors"].values():
        assert {key for row in detector["cells"].values() for cell in row.values() for key in cell} == {
            "published",
            "measured",
        }


def test_skipped_images_are_no_reproduction(data: Path) -> None:
    content = evaluation(NAME, data, skipped=("a.jpg: missing", "b.jpg: missing"))
    assert Row(get_detector_info(NAME), Evaluation(**content)).caveat == "2 images skipped"


def test_a_demo_is_held_against_what_was_measured_here(data: Path, work: Path, run: Run) -> None:
    for name in list(read_manifest().demos):
        prepare(work, name, evaluation(name, data))
    status, printed, _ = run("reproduce", *list(read_manifest().demos), "--data-root", data, "--work-dir", work)
    assert status == 0 and printed.startswith("All ")
    assert rows_of((work / "results.md").read_text())[DEMO][:2] == ["Mask R-CNN DPT-Nano", "2.9 M"]


@pytest.mark.slow
def test_the_digit_scenes_are_those_that_the_demos_were_measured_on(tmp_path: Path) -> None:
    make_digit_scenes(tmp_path / "digits", num_train=1, num_test=DIGITS.num_images)
    content = (tmp_path / "digits/annotations/instances_val2017.json").read_bytes()
    # The file contains the number of training scenes: `dpt-zoo make-digits` makes 8,000.
    content = content.replace(b'"num_train": 1,', b'"num_train": 8000,', 1)
    assert hashlib.sha256(content).hexdigest() == DIGITS.annotations_sha256


# --- What is evaluated, and how


@pytest.fixture
def evaluating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a shell's lines in the place of Python; the file that this returns has each call's arguments."""
    calls = tmp_path / "calls"

    def put(lines: str) -> Path:
        program = tmp_path / "python"
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" "$PYTHONPATH" "$OMP_NUM_THREADS" >> {calls}\n{lines}\n')
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        return calls

    return put


def change_file(data: Path, content: Json, file: str) -> None:
    path = data / f"{file}.bin"
    path.write_bytes(b"another")
    content[file] = {"path": str(path), "sha256": hashlib.sha256(b"one").hexdigest()}


@pytest.mark.parametrize(
    "change",
    [
        lambda data, content: content.update(limit=3),
        lambda data, content: content.update(amp=True),
        lambda data, content: content.update(skipped=["a.jpg: missing"]),
        lambda data, content: content.update(runtime="ONNX Runtime 1.32.0"),
        lambda data, content: content["annotations"].update(path=str(data.parent / "other/annotations.json")),
        functools.partial(change_file, file="annotations"),
        functools.partial(change_file, file="weights"),
        lambda data, content: content.pop("metrics"),
        lambda data, content: content.clear(),
    ],
)
def test_what_was_evaluated_otherwise_is_evaluated_again(
    change: Callable[[Path, Json], object], data: Path, work: Path, run: Run, evaluating: Callable[[str], Path]
) -> None:
    content = evaluation(NAME, data)
    change(data, content)
    prepare(work, NAME, content)
    calls = evaluating("exit 3")
    status, _, _ = run("reproduce", NAME, "--data-root", data, "--work-dir", work)
    assert status == 1 and calls.exists()


@pytest.mark.parametrize(
    ("options", "processes", "changes"),
    [
        ([], 1, {}),
        (
            [*("--limit", 7, "--batch-size", 2, "--workers", 0), "--amp", "--skip-missing"],
            1,
            {"limit": 7, "batch_size": 2, "workers": 0, "amp": True, "skip_missing": True},
        ),
        (["--processes", 2], 2, {}),
    ],
)
def test_each_is_evaluated_by_a_worker(
    options: list[object],
    processes: int,
    changes: Json,
    data: Path,
    work: Path,
    run: Run,
    evaluating: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    calls = evaluating("exit 3")
    run("reproduce", "retinanet*t_1x", NAME, "--data-root", data, "--work-dir", work, *options)
    lines = calls.read_text().splitlines()
    defaults = {"limit": None, "batch_size": None, "workers": None, "amp": False, "skip_missing": False}
    for line, name in zip(lines[0::3], (OTHER, NAME), strict=True):
        *command, arguments = line.split(" ", 3)
        assert command == ["-m", "dpt_zoo.reproduction.worker", str(processes)]
        own = {"model": name, "work_dir": str(work / name), "data_root": str(data), "resume": True}
        assert json.loads(arguments) == own | defaults | changes
    assert lines[1].split(os.pathsep)[0] == str(ROOT)
    assert lines[2] == (str(max(1, len(os.sched_getaffinity(0)) // 2)) if processes > 1 else "")


def test_exported_files_are_evaluated_by_a_worker(
    data: Path, work: Path, run: Run, evaluating: Callable[[str], Path]
) -> None:
    prepare(work, NAME, evaluation(NAME, data))  # of PyTorch
    prepare(work, OTHER, evaluation(OTHER, data, runtime="OpenVINO 2026.4.1"))
    calls = evaluating("exit 3")
    run("reproduce", NAME, OTHER, "--data-root", data, "--work-dir", work, "--format", "openvino")
    (line,) = calls.read_text().splitlines()[0::3]
    arguments = json.loads(line.split(" ", 3)[3])
    assert (arguments["exported_from"], arguments["model"]) == (NAME, str(work / NAME / f"{NAME}.xml"))
    assert "| A GPU | OpenVINO 2026.4.1 |" in (work / "results.md").read_text()


@pytest.mark.parametrize(
    ("error", "end", "reason"),
    [
        (f"{NAME}: no place has it\n  here: no\n  there", "exit 1", "no place has it: here: no"),
        (
            "the data cannot be used:\n  missing image (1): a.jpg",
            "exit 1",
            "the data cannot be used: missing image (1): a.jpg",
        ),
        ("numpy.SomeError: seven\nof\n  nine", "exit 1", "numpy.SomeError: seven"),
        (None, "kill -KILL $$", "killed by SIGKILL: was its memory too small?"),
        ("the other process is gone", "kill -KILL $$", "killed by SIGKILL: was its memory too small?"),
        (None, "kill -TERM $$", "killed by SIGTERM"),
        (None, "exit 3", "ended with status 3"),
        (None, "exit 0", "has no evaluation.json of the known form"),
    ],
)
def test_a_failure_is_reported_and_the_others_are_evaluated(
    error: str | None, end: str, reason: str, data: Path, work: Path, run: Run, evaluating: Callable[[str], Path]
) -> None:
    error_file = work / NAME / "error.json"
    write = "" if error is None else f"cat > {error_file} <<'END'\n{json.dumps(error)}\nEND\n"
    evaluating(f"{write}{end}")
    prepare(work, OTHER, evaluation(OTHER, data))
    error_file.parent.mkdir()
    error_file.write_text(json.dumps("an earlier error"))
    status, printed, _ = run("reproduce", NAME, OTHER, "--data-root", data, "--work-dir", work)
    assert status == 1
    assert printed.splitlines()[0].endswith("the published ones. 1 of 2 detectors failed.")
    markdown = (work / "results.md").read_text()
    (line,) = re.findall(rf"^- `{NAME}`: (.*)$", markdown, re.MULTILINE)
    assert line.endswith(reason)
    assert rows_of(markdown)[NAME][3:] == ["failed"] * 6
    assert json.loads((work / "results.json").read_text())["detectors"][NAME]["error"] == line


# --- Bad input


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["mrcnn", "--data-root", "."], "there is no model 'mrcnn': did you mean mrcnn_dpt_"),
        (["--data-root", "nowhere"], "data_root: there is no folder nowhere"),
        (["--data-root", ".", "--limit", 0], "limit must be a whole number from 1, not 0"),
        (["--data-root", ".", "--processes", -1], "processes must be a whole number from 1, not -1"),
        (["--data-root", ".", "--processes", 2, "--format", "onnx"], "format='onnx' does not allow processes"),
        (["--data-root", ".", "--work-dir", "/dev/null/x"], "/dev/null/x cannot be made"),
    ],
)
def test_one_clear_line(arguments: list[object], complaint: str, run: Run) -> None:
    status, printed, errors = run("reproduce", *arguments)
    assert (status, printed) == (2, "")
    assert errors.startswith("dpt-zoo: ") and complaint in errors and errors.count("\n") == 1


def test_data_root_is_required(run: Run) -> None:
    status, _, errors = run("reproduce", NAME)
    assert status == 2 and errors.startswith("usage: dpt-zoo reproduce")


# --- The process


def start(program: Path, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """Start the command, with a program in the place of the Python that it starts."""
    code = "import sys; sys.executable = sys.argv[1]; from dpt_zoo.cli import main; sys.exit(main(sys.argv[2:]))"
    # A shell's background jobs, and so their children, ignore the signal: these tests may be one.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-c", code, program, "reproduce", *arguments]
    pipes: Json = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, preexec_fn=heed, **{**pipes, **options})


def add_program(folder: Path, lines: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


def wait_for_line(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stderr is not None
    while (errors := process.stderr.readline()) != f"{line}\n":
        assert errors, f"ended without {line!r}"


FOREVER = "while :; do sleep 0.05; done"


@pytest.mark.slow
def test_an_interrupt_stops_the_evaluation(data: Path, work: Path, tmp_path: Path) -> None:
    prepare(work, OTHER, evaluation(OTHER, data))
    program = add_program(tmp_path, f"trap 'echo stopped >&2; exit 130' INT; echo begun >&2; {FOREVER}")
    with start(program, NAME, OTHER, "--data-root", data, "--work-dir", work) as process:
        wait_for_line(process, "begun")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "stopped\n")
    assert process.returncode == 130
    rows = rows_of((work / "results.md").read_text())
    assert rows[NAME][3] == "not yet" and rows[OTHER][3] == "39.5 (39.5) +0.0 ✓"
    assert not list(work.glob(".*"))  # nothing half-written stays


@pytest.mark.slow
def test_a_second_interrupt_kills_it(data: Path, work: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program = add_program(tmp_path, f"trap 'echo again >&2' INT; echo $$ > {pid}; echo begun >&2; {FOREVER}")
    with start(program, NAME, "--data-root", data, "--work-dir", work) as process:
        for line in ("begun", "again"):
            wait_for_line(process, line)
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.slow
def test_on_a_terminal_it_finds_a_terminal(data: Path, work: Path, tmp_path: Path) -> None:
    program = add_program(tmp_path, "[ -t 2 ] && echo 'on a terminal' >&2; exit 3")
    ours, theirs = os.openpty()
    with start(program, NAME, "--data-root", data, "--work-dir", work, stderr=theirs) as process:
        process.communicate(timeout=60)
    assert b"on a terminal" in os.read(ours, 10_000)
    os.close(ours)
    os.close(theirs)


# --- Real evaluations


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digit scenes: 1 to train on, 6 to test with."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digit_scenes(folder, num_train=1, num_test=6, seed=3)
    return folder


@pytest.mark.slow
def test_one_that_is_killed_is_evaluated_next_time(
    digits: Path, work: Path, run: Run, quick_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(work, OTHER_DEMO, evaluation(OTHER_DEMO, digits, num_images=6))
    before = first.stat().st_mtime_ns
    arguments = [DEMO, OTHER_DEMO, "--data-root", digits, "--work-dir", work, "--workers", 0]
    with start(quick_python, *arguments) as process:
        wait_for_line(process, f"{DEMO}: 1 of 2")
        os.kill(child_of(process.pid), signal.SIGKILL)
        printed, _ = process.communicate(timeout=300)
    caveat = f"This is not a reproduction: the data are not {DIGITS.name}."
    assert (process.returncode, printed.splitlines()[0]) == (1, f"{caveat} 1 of 2 detectors failed.")
    assert f"- `{DEMO}`: killed by SIGKILL: was its memory too small?\n" in (work / "results.md").read_text()

    start_quickly(quick_python, monkeypatch)
    status, printed, _ = run("reproduce", *arguments)
    assert (status, printed.splitlines()[0]) == (0, caveat)
    assert first.stat().st_mtime_ns == before  # it was not evaluated again
    rows = rows_of((work / "results.md").read_text())
    for name in (DEMO, OTHER_DEMO):
        known = json.loads((work / name / "evaluation.json").read_text())
        assert known["num_images"] == 6
        published = get_detector_info(name).metrics
        measured = [f"{known['metrics'][task][each]:.1f}" for task, row in published.items() for each in row]
        assert [cell.split()[0] for cell in rows[name][2:] if cell != "-"] == measured


def child_of(pid: int) -> int:
    """The process that a process has started, once there is one."""
    while True:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.01)


@pytest.mark.slow
def test_one_without_weights_fails_in_one_line(
    digits: Path, work: Path, run: Run, quick_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_quickly(quick_python, monkeypatch)
    monkeypatch.setenv("DPT_ZOO_OFFLINE", "1")
    options = ["--data-root", digits, "--work-dir", work, "--processes", 2, "--workers", 0]
    status, printed, _ = run("reproduce", NAME, *options)
    summary = "This is not a reproduction: nothing was evaluated. 1 of 1 detectors failed."
    assert (status, printed.splitlines()[0]) == (1, summary)
    (line,) = re.findall(rf"^- `{NAME}`: (.*)$", (work / "results.md").read_text(), re.MULTILINE)
    assert re.fullmatch(r"its weights could not be fetched: https://\S+: not asked, DPT_ZOO_OFFLINE is set", line)


KILL_THE_SECOND = """
import os, signal, sys, time
import dpt_zoo.evaluation.evaluator
def evaluate(**options):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    raise RuntimeError("the other process is gone")
dpt_zoo.evaluation.evaluator.evaluate = evaluate
"""


@pytest.mark.slow
def test_of_several_processes_the_killed_one_is_reported(
    data: Path, work: Path, tmp_path: Path, run: Run, quick_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Python process imports `sitecustomize` when it starts."""
    code = KILL_THE_SECOND.replace("\n", "\n    ")
    (tmp_path / "sitecustomize.py").write_text(f"import os\nif 'RANK' in os.environ:\n    {code}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start_quickly(quick_python, monkeypatch)
    status, _, _ = run("reproduce", NAME, "--data-root", data, "--work-dir", work, "--processes", 2)
    assert status == 1
    assert f"- `{NAME}`: killed by SIGKILL: was its memory too small?\n" in (work / "results.md").read_text()


@pytest.mark.slow
def test_the_script_is_the_command(data: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "work", NAME, evaluation(NAME, data))
    options = ["--data-root", str(data), "--work-dir", "work"]
    command = [sys.executable, str(ROOT / "scripts/reproduce_results.py"), NAME, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[1]) == (0, "work/results.md"), done.stderr

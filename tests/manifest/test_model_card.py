"""Model cards agree with the manifest, the configs and the digit scenes, and `dpt-zoo info` prints them."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mmengine.config import Config
from PIL import Image
from reference_data import PHOTO, ROOT
from running import Run
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg

from dpt_zoo.cli import main
from dpt_zoo.data import digits
from dpt_zoo.manifest.model_card import card
from dpt_zoo.manifest.records import Classifier, DemoDetector, PublishedDetector, get_model_info, read_manifest
from dpt_zoo.models import DPTClassifier

Record = PublishedDetector | DemoDetector | Classifier

MANIFEST = read_manifest()
DEMO = "mrcnn_dpt_nano_digits"
HEADINGS = [
    "Training",
    "Results",
    "Intended use and limits",
    "Use",
    "Where the weights come from",
    "License",
    "Citation",
]

every_record = pytest.mark.parametrize("record", MANIFEST.records.values(), ids=MANIFEST.records)
every_published = pytest.mark.parametrize(
    "record", MANIFEST.published_detectors.values(), ids=MANIFEST.published_detectors
)
every_demo = pytest.mark.parametrize("record", MANIFEST.demos.values(), ids=MANIFEST.demos)


class TestEveryCard:
    @every_record
    def test_what_is_known_of_the_model(self, record: Record) -> None:
        text = card(record)
        assert text.startswith(f"# {record.title}\n\n")
        assert re.findall("^## (.*)$", text, re.M) == HEADINGS
        assert f"{record.num_params:,} parameters" in text
        assert record.paper in text
        assert section(text, "License") == f"{record.license}."

    @every_record
    def test_it_is_the_same_on_every_machine(self, record: Record) -> None:
        assert str(ROOT) not in card(record) and str(Path.home()) not in card(record)

    @every_record
    def test_where_the_weights_come_from(self, record: Record) -> None:
        facts = table(section(card(record), "Where the weights come from"))
        where = facts.get("authors' file") or facts["file"]
        for location in record.locations:
            assert location.url.removeprefix(f"{ROOT}/") in where[0]
        assert facts["file SHA-256"] == [f"`{record.sha256}`" if record.sha256 else "unknown"]
        assert facts["file size"] == [f"{record.num_bytes:,} bytes" if record.num_bytes else "unknown"]
        assert facts["tensors SHA-256"] == [f"`{record.tensors_sha256}`" if record.tensors_sha256 else "unknown"]

    def test_whom_it_cites(self) -> None:
        paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
        citation = " ".join(section(card(get_model_info(DEMO)), "Citation").split())
        assert f"title = {{{paper['title']}}}" in citation
        authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
        assert f"author = {{{authors}}}" in citation
        assert f"booktitle = {{{paper['collection-title']}}}" in citation
        assert f"year = {{{paper['year']}}}" in citation
        assert f"eprint = {{{paper['identifiers'][0]['value'].removeprefix('arXiv:')}}}" in citation


class TestPublishedDetectors:
    @every_published
    def test_the_metrics_are_the_authors(self, record: PublishedDetector) -> None:
        text = section(card(record), "Results")
        assert text.startswith("Results on COCO val2017 in percent, published by the authors. DPT Zoo has not measured")
        assert metrics(text) == record.metrics

    @every_published
    def test_the_training_is_the_configs(self, record: PublishedDetector) -> None:
        config: Any = Config.fromfile(record.config_path)
        text = section(card(record), "Training")
        assert re.findall(r"(\d+) epochs", text) == [str(config.train_cfg.max_epochs)]
        (resize,) = [step for step in config.train_dataloader.dataset.pipeline if "Resize" in step.type]
        scales = resize.get("scales") or [resize.scale]
        longest, shortest = zip(*scales, strict=True)
        sizes = {str(length) for length in (*longest, min(shortest), max(shortest))}
        assert set(re.findall(r"\d{3,4}(?= pixels| by| to|\.)", text)) == sizes
        assert f"`{config.model.backbone.init_cfg.checkpoint}`" in text
        assert config.train_dataloader.dataset.ann_file == "annotations/instances_train2017.json"

    @every_published
    def test_the_limits_are_the_configs(self, record: PublishedDetector) -> None:
        config: Any = Config.fromfile(record.config_path)
        text = section(card(record), "Intended use and limits")
        (resize,) = [step for step in config.test_dataloader.dataset.pipeline if step.type == "Resize"]
        longest, shortest = resize.scale
        assert resize.keep_ratio and f"fit into {longest} by {shortest} pixels, or {shortest} by {longest}" in text
        assert f"COCO's {record.num_classes} classes" in text
        assert ("boxes and masks" in text) == ("segm" in record.metrics)

    def test_a_recorded_file(self) -> None:
        record = MANIFEST.published_detectors["mrcnn_dpt_t_1x"]
        recorded = dataclasses.replace(record, sha256="ab" * 32, num_bytes=440_000_001)
        facts = table(section(card(recorded), "Where the weights come from"))
        assert facts["file SHA-256"] == [f"`{'ab' * 32}`"] and facts["file size"] == ["440,000,001 bytes"]

    def test_a_published_copy(self) -> None:
        location = "hf://org/dpt"
        text = card(MANIFEST.published_detectors["mrcnn_dpt_t_1x"], location=location)
        assert f'Detector("{location}")' in section(text, "Use")
        assert f'weights="{location}"' in section(text, "Use")
        assert "converted the authors' file to safetensors" in section(text, "Where the weights come from")


class TestDemos:
    @every_demo
    def test_the_metrics_are_this_projects(self, record: DemoDetector) -> None:
        text = section(card(record), "Results")
        assert text.startswith(f"Results on {record.data} in percent, measured by this project.")
        assert metrics(text) == record.metrics

    @every_demo
    def test_how_it_was_trained(self, record: DemoDetector) -> None:
        facts = {key: value.strip("`") for key, (value,) in table(section(card(record), "Training")).items()}
        assert (facts["config"], facts["log"]) == (record.config, record.log)
        assert (facts["command"], facts["seed"]) == (record.command, str(record.seed))
        assert (facts["machine"], float(facts["minutes"])) == (record.machine, record.minutes)
        assert dict(each.split(" ") for each in facts["versions"].split(", ")) == record.versions

    @every_demo
    def test_the_limits_are_those_of_the_scenes(self, record: DemoDetector) -> None:
        config: Any = Config.fromfile(record.config_path)
        (resize,) = [step for step in config.test_dataloader.dataset.pipeline if step.type == "Resize"]
        text = " ".join(section(card(record), "Intended use and limits").split())
        assert f"{digits.MIN_DIGITS} to {digits.MAX_DIGITS} handwritten digits" in text
        size = 192  # of a scene, unless another is asked for
        assert resize.scale == (size, size) and f"fit into {size} by {size} pixels" in text
        assert f"{size // 8} to {size * 5 // 12} pixels high and rotated by up to {digits.MAX_TURN} degrees" in text
        assert ("boxes and masks" in text) == ("segm" in record.metrics)

    def test_its_examples_work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Image.open(PHOTO).convert("RGB").save("photo.jpg")
        found = execute(section(card(get_model_info(DEMO)), "Use"))
        assert len(found["detections"].masks) == len(found["detections"].boxes)
        assert type(found["model"]).__name__ == "MaskRCNN"


class TestClassifiers:
    @pytest.mark.parametrize("record", MANIFEST.classifiers.values(), ids=MANIFEST.classifiers)
    def test_the_metrics_are_the_authors(self, record: Classifier) -> None:
        text = section(card(record), "Results")
        assert "published by the authors. DPT Zoo has not measured them again" in text
        assert [float(value) for (value,) in table(text).values()] == [record.metrics["top1"], record.gflops]
        _, height, width = get_pretrained_cfg(record.name).input_size
        assert f"on images of {height} by {width} pixels" in card(record)

    def test_its_examples_work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        state = DPTClassifier("tiny").state_dict()
        (tmp_path / "mirror").mkdir()
        save_file(state, tmp_path / "mirror" / "dpt_tiny.safetensors")
        monkeypatch.setenv("DPT_ZOO_MIRROR", str(tmp_path / "mirror"))
        use = section(card(get_model_info("dpt_tiny")), "Use")
        (command,) = re.findall("```bash\ndpt-zoo (.*)\n```", use)
        assert main(command.split()) == 0
        loaded = execute(use)["classifier"].state_dict()
        assert all(tensor.equal(loaded[name]) for name, tensor in state.items())


class TestInfo:
    def test_the_card_and_what_is_here(self, run: Run) -> None:
        status, out, err = run("info", "mrcnn_dpt_t_1x")
        record = MANIFEST.published_detectors["mrcnn_dpt_t_1x"]
        text, _, here = out.partition("\nOn this machine:\n")
        assert (status, text, err) == (0, card(record), "")
        assert facts_here(here)["config"] == str(record.config_path)
        assert re.search("\n  sha256 +unknown, not yet recorded\n  size +unknown\n", here)
        assert facts_here(here)["cached"].startswith("no, ")

    def test_a_demo(self, run: Run) -> None:
        demo = MANIFEST.demos[DEMO]
        facts = facts_here(run("info", DEMO)[1].partition("\nOn this machine:\n")[2])
        assert Path(facts["config"]) == demo.config_path and Path(facts["log"]) == demo.log_path
        assert facts["sha256"] == demo.sha256 and facts["size"] == f"{demo.num_bytes:,} bytes"
        assert facts["cached"] == "not needed: shipped with the project"

    def test_on_a_terminal_it_is_set(self) -> None:
        shown = on_terminal([sys.executable, "-m", "dpt_zoo", "info", DEMO])
        assert "## " not in shown and "```" not in shown and "| --- |" not in shown
        for text in ("Results", " • It predicts boxes and masks.", MANIFEST.demos[DEMO].paper, "On this machine:"):
            assert text in shown
        ap = MANIFEST.demos[DEMO].metrics["bbox"]["mAP"]
        assert re.search(rf"^ *box +│? *{ap}", shown, re.M)

    def test_no_torch_is_loaded(self) -> None:
        code = "import sys; from dpt_zoo.cli import main; main(['info', 'mrcnn_dpt_t_1x']); print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert not {"torch", "numpy", "mmengine", "PIL"} & set(done.stdout.splitlines()[-1].split())

    def test_a_wrong_name(self, run: Run) -> None:
        expected = "dpt-zoo: there is no model 'mrcnn_dpt_t': did you mean mrcnn_dpt_t_1x?\n"
        assert run("info", "mrcnn_dpt_t") == (2, "", expected)


def section(text: str, heading: str) -> str:
    """Return the text below a heading of a card."""
    found = re.search(rf"\n## {heading}\n\n(.*?)\n*(?=\n## |\Z)", text, re.DOTALL)
    assert found
    return found[1]


def table(text: str) -> dict[str, list[str]]:
    """Return the cells of a table's rows, by the cell of the first column."""
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", text, re.M)]
    return {first: others for first, *others in rows[2:]}


def metrics(text: str) -> dict[str, dict[str, float]]:
    """Return the metrics in a table, in the form of the manifest."""
    names = re.findall(r"\bA\w+|mAP", next(line for line in text.splitlines() if line.startswith("|")))
    rows = {{"box": "bbox", "mask": "segm"}[word]: cells for word, cells in table(text).items()}
    return {task: dict(zip(names, map(float, cells), strict=True)) for task, cells in rows.items()}


def execute(use: str) -> dict[str, Any]:
    """Run the Python examples of a card and return their variables."""
    names: dict[str, Any] = {}
    for block in re.findall("```python\n(.*?)```", use, re.DOTALL):
        exec(block.replace("path/to/dpt-zoo", str(ROOT)), names)
    return names


def facts_here(text: str) -> dict[str, str]:
    """Return the first lines of the facts that are printed below a card, by their names."""
    return {line[2:18].strip(): line[19:] for line in text.splitlines()}


def on_terminal(command: list[str]) -> str:
    """Return what a command shows on a terminal of 100 columns, without colors."""
    ours, its = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # on Linux: the process has ended
                break
    os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[\d;]*m", "", shown.decode()).replace("\r", "")

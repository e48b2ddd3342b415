"""The inputs that `scripts/fuzz.py` kept, and those that it starts from."""

import zipfile
from pathlib import Path

import fuzz
import pytest


@pytest.mark.parametrize("reader", fuzz.READERS)
@pytest.mark.filterwarnings("ignore")  # of Pillow, about damaged images
def test_only_the_projects_exceptions_leave_a_reader(reader: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(fuzz.CORPORA / f"{reader}.zip") as corpus:
        for name in corpus.namelist():
            fuzz.read(reader, corpus.read(name), tmp_path)


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_the_fuzzer_starts_from_valid_inputs(reader: str, tmp_path: Path) -> None:
    for number, seed in enumerate(fuzz.seeds(reader)):
        (tmp_path / str(number)).mkdir()
        fuzz.READERS[reader](seed, tmp_path / str(number))

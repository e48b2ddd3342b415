"""Read YOLO's labels: text files of boxes or polygons, and a `data.yaml`."""

import reprlib
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError
from .checks import exists
from .annotations import Object, LabelledSplit, Picture, images_in, sensible
from .annotation_checks import ImageSize
from .issues import IssueType


def find_config(folder: Path) -> Path | None:
    """The file that describes a YOLO data set: `data.yaml`, or the only one of another name."""
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if folder / "data.yaml" in files:
        return folder / "data.yaml"
    return files[0] if len(files) == 1 else None


def read_yolo(folder: Path, config: Path) -> tuple[list[str], list[LabelledSplit]]:
    """Read the classes and all labels of a data set that `config` describes.

    Raises:
        DataError: the file cannot be used.
    """
    reader = _Reader(folder, config)
    return reader.classes, reader.read()


class _Reader:
    def __init__(self, folder: Path, config: Path) -> None:
        self.folder = folder
        self.config = config
        try:
            content = yaml.safe_load(config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise DataError(f"{config} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise self._wrong("it has no names, train and val")
        if "kpt_shape" in content:
            raise self._wrong("its labels are poses (kpt_shape); only boxes and polygons can be read")
        self.content: dict[Any, Any] = content
        self.classes = self._read_names()

    def read(self) -> list[LabelledSplit]:
        parts = []
        for name in ("train", "val", "test"):
            entries = self.content.get(name)
            if entries:
                part = LabelledSplit(name)
                for entry in entries if isinstance(entries, list) else [entries]:
                    self._read_entry(entry, part)
                names = [self._label_of(self.folder / picture.name) for picture in part.pictures]
                if names and not any(map(exists, names)):
                    part.add(IssueType.LABEL, self._name(names[0]), f"neither this nor any other label of {name} is there")
                parts.append(part)
        if not parts:
            raise self._wrong("it names no images: give the folders of images as train and val")
        return parts

    def _wrong(self, what: str) -> DataError:
        return DataError(f"{self.config}: {what}")

    def _read_names(self) -> list[str]:
        names = self.content.get("names")
        if isinstance(names, list):
            names = dict(enumerate(names))
        if not isinstance(names, dict) or not names:
            raise self._wrong("it has no names: give the classes, in order, as a list")
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise self._wrong(f"its names are not numbered from 0 to {len(names) - 1}")
        if self.content.get("nc", len(names)) != len(names):
            raise self._wrong(f"nc says {reprlib.repr(self.content['nc'])} classes, but there are {len(names)} names")
        ordered = [names[number] for number in sorted(names, key=int)]
        if any(isinstance(name, list | dict) for name in ordered) or len(set(map(str, ordered))) < len(ordered):
            raise self._wrong(f"its names are {reprlib.repr(ordered)}: every class needs one of its own")
        return list(map(str, ordered))

    def _read_entry(self, entry: Any, part: LabelledSplit) -> None:
        """Read a folder of images, or a list of images, and their labels."""
        path = self._find(entry)
        if path is None:
            what = f"there is no {reprlib.repr(entry)} below {self.folder}"
            part.add(IssueType.MISSING_IMAGE, f"{self.config}, {part.name}", what)
        elif path.is_dir():
            self._read_folder(path, part)
        else:
            for number, line in part.lines(path):
                image = self._find(line)
                if image is None:
                    part.add(IssueType.MISSING_IMAGE, f"{path}, line {number}", f"there is no {line!r} below {self.folder}")
                else:
                    self._read_image(image, part)

    def _find(self, entry: Any) -> Path | None:
        """Find what `data.yaml` names, below the folder that it is in, wherever it was when it was written."""
        for start in ("", self.content.get("path")):
            if isinstance(start, str) and isinstance(entry, str):
                names = f"{start}/{entry}".replace("\\", "/").split("/")
                path = self.folder.joinpath(*(name for name in names if name not in ("", ".", "..")))
                if exists(path):
                    return path
        return None

    def _read_folder(self, path: Path, part: LabelledSplit) -> None:
        images = images_in(path)
        for image in images:
            self._read_image(image, part)
        labels = self._label_of(path / "any").parent
        expected = {self._label_of(image) for image in images}
        for label in sorted(labels.rglob("*.txt")):
            if label not in expected and label.name != "classes.txt":  # some tools put the names there
                part.add(IssueType.ORPHAN, self._name(label), f"there is no image {label.stem!r}")

    def _read_image(self, path: Path, part: LabelledSplit) -> None:
        name = self._name(path)
        size = part.read_size(path, name)
        if size is None:
            return
        picture = Picture(name, size, name)
        label = self._label_of(path)
        for number, line in part.lines(label) if exists(label) else ():
            where = f"{self._name(label)}, line {number}"
            try:
                picture.objects.append(self._read_line(line, size, where))
            except ValueError as error:
                part.add(IssueType.LABEL, where, str(error))
        part.pictures.append(picture)

    def _read_line(self, line: str, size: ImageSize, where: str) -> Object:
        """Read a class and a box's centre, width and height, or a polygon's corners, in parts of the image's size.

        Raises:
            ValueError: the line is neither.
        """
        label, *numbers = map(sensible, line.split())
        if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
            raise ValueError(
                f"it has {len(numbers) + 1} numbers: a class and a box are 5, with a polygon it is 7, 9, ..."
            )
        if label not in range(len(self.classes)):
            raise ValueError(f"its class is {label:g}: the names are numbered from 0 to {len(self.classes) - 1}")
        name = self.classes[int(label)]
        numbers = [number * size[index % 2] for index, number in enumerate(numbers)]
        if len(numbers) == 4:
            x, y, width, height = numbers
            return Object(name, [x - width / 2, y - height / 2, x + width / 2, y + height / 2], [], where)
        xs, ys = numbers[::2], numbers[1::2]
        return Object(name, [min(xs), min(ys), max(xs), max(ys)], [numbers], where)

    def _label_of(self, image: Path) -> Path:
        names = list(image.relative_to(self.folder).parts)
        for index in reversed(range(len(names) - 1)):
            if names[index] == "images":
                names[index] = "labels"
                break
        return self.folder.joinpath(*names).with_suffix(".txt")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

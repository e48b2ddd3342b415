"""Read Pascal VOC's labels: an XML file for each image."""

from pathlib import Path
from xml.etree.ElementTree import Element

import defusedxml.ElementTree

from .checks import exists
from .annotations import Object, LabelledSplit, Picture, images_in, sensible
from .issues import IssueType


def read_voc(folder: Path) -> tuple[list[str], list[LabelledSplit]]:
    """Read all labels of a data set, and the classes of its objects by the alphabet; nothing if there are none."""
    parts = _Reader(folder).read()
    return sorted({thing.name for part in parts for picture in part.pictures for thing in picture.objects}), parts


class _Reader:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> list[LabelledSplit]:
        labels = self.folder / "Annotations"
        if not any(labels.glob("*.xml")):
            homes = [self.folder, *sorted(path for path in self.folder.iterdir() if path.is_dir())]
            return [
                self._read_part("train" if home == self.folder else home.name, home, home)
                for home in homes
                if any(home.glob("*.xml"))
            ]
        images = self.folder / "JPEGImages"
        lists = {path.stem: path for path in (self.folder / "ImageSets" / "Main").glob("*.txt")}
        for names in (("train", "val", "test"), ("trainval",)):
            parts = [self._read_part(name, images, labels, lists[name]) for name in names if name in lists]
            if parts:
                return parts
        return [self._read_part("train", images, labels)]

    def _read_part(self, name: str, images: Path, labels: Path, listed: Path | None = None) -> LabelledSplit:
        """Read a folder of images and one of labels: what a file has `listed`, or all."""
        part = LabelledSplit(name)
        files = {path.stem: path for path in images_in(images)}
        if listed:
            stems = {line: f"{self._name(listed)}, line {number}" for number, line in part.lines(listed)}
        else:
            stems = {path.stem: self._name(path) for path in sorted([*files.values(), *labels.glob("*.xml")])}
        for stem, where in stems.items():
            if stem in files:
                self._read_image(files[stem], labels / f"{stem}.xml", part)
            else:
                issue_type = IssueType.MISSING_IMAGE if listed else IssueType.ORPHAN
                part.add(issue_type, where, f"there is no image {stem!r} in {images}")
        return part

    def _read_image(self, path: Path, label: Path, part: LabelledSplit) -> None:
        if not exists(label):
            size = part.read_size(path, self._name(path))
            if size is not None:
                part.pictures.append(Picture(self._name(path), size, self._name(path)))
            return
        where = self._name(label)
        try:
            root = defusedxml.ElementTree.fromstring(label.read_bytes())
            picture = Picture(self._name(path), (_whole(root, "size/width"), _whole(root, "size/height")), where)
        except (OSError, SyntaxError, ValueError) as error:  # a SyntaxError tells the line and column
            part.add(IssueType.LABEL, where, str(error))
            return
        for number, element in enumerate(root.findall("object"), 1):
            try:
                picture.objects.append(self._read_object(element, f"{where}, object {number}"))
            except ValueError as error:
                part.add(IssueType.LABEL, f"{where}, object {number}", str(error))
        part.pictures.append(picture)

    def _read_object(self, element: Element, where: str) -> Object:
        """Read an object; a box's corners are its first and last pixel, which count from 1.

        Raises:
            ValueError: it has no name or no box.
        """
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError("it has no name")
        x1, y1, x2, y2 = (_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
        polygons = [[sensible(point.text) - 1 for point in polygon] for polygon in element.findall("polygon")]
        for polygon in polygons:
            if len(polygon) < 6 or len(polygon) % 2:
                raise ValueError(f"its polygon has {len(polygon)} numbers, not x1, y1, x2, y2, x3, y3, ...")
        return Object(name, [x1 - 1, y1 - 1, x2, y2], polygons, where)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _whole(element: Element, path: str) -> int:
    number = _number(element, path)
    if not number.is_integer():
        raise ValueError(f"its {path} is {number}")
    return int(number)


def _number(element: Element, path: str) -> float:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"it has no {path}")
    return sensible(text)

"""Issues of a data set: their types, and how they are listed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from ..utils.text import printable


class IssueType(Enum):
    """A type of issue: its `title`, its `advice` (the effect or the remedy), and whether it `is_error`.

    Errors stop training and evaluation, or would make their results wrong. The others are warnings: MMDetection 3
    handles the object or the file, or ignores it.
    """

    FILE = "invalid annotation file", "use a COCO file with annotations of objects"
    FIELD = "invalid field", "ids are whole numbers from 0, sides positive ones, names are text, iscrowd is 0 or 1"
    DUPLICATE_ID = "duplicate id", "only the last entry with an id is used"
    DUPLICATE_CLASS = "duplicate class", "give every class its own name"
    CLASSES = "wrong classes", "labels follow the order of the categories: it must be the same in every file"
    DUPLICATE_IMAGE = "duplicate image", "merge the entries: each lacks the objects of the others"
    IMAGE_PATH = "path outside the folder", "file_name must be a path below the folder of images"
    MISSING_IMAGE = "missing image", "add the file, or remove the image from the annotations"
    UNREADABLE_IMAGE = "unreadable image", "replace the file, or remove the image from the annotations"
    IMAGE_SIZE = "wrong image size", "the annotations are of another image, or of this one before it was changed"
    EMPTY = "empty split", "add images and objects"
    LABEL = "unreadable label", "it cannot be converted to COCO's format"
    CATEGORY = "unknown category", "the object would be learned as background"
    BOX = "invalid box", "bbox must be [x, y, width, height] in pixels: finite numbers, no negative width or height"
    AREA = "invalid area", "area must be a finite number of square pixels, not negative"
    POLYGON = "invalid polygon", "a polygon must be [x1, y1, x2, y2, x3, y3, ...] in pixels: at least three points"
    RLE = "invalid RLE", "an RLE needs the image's size [height, width] and counts that sum to height * width"
    NO_MASK = "missing mask", "the model learns masks: give every object one"
    NO_EXTENT = "label without extent", "points and lines are no objects: the label is ignored", False
    COMPLETED = "completed annotations", "training and evaluation use a completed copy of the file", False
    PARENT_CLASS = "category that is no class", "left out: it has no objects, and is a parent or the background", False
    MOSTLY_CROWDS = "class of crowds", "crowds are not learned: set iscrowd to 0, unless they are groups", False
    OTHER_CLASSES = "extra classes", "their objects are ignored", False
    UNKNOWN_IMAGE = "unknown image", "the annotation is ignored", False
    EMPTY_BOX = "empty box", "training ignores objects under 1 pixel in width or height", False
    BOX_OUTSIDE = "box outside the image", "training ignores the object", False
    BOX_ACROSS = "box across the border", "training clips it to the image", False
    POLYGON_ACROSS = "polygon across the border", "training clips it to the image", False
    NO_AREA = "zero area", "training ignores the object", False
    LARGE_AREA = "area larger than the box", "the AP of small, medium and large objects depends on it", False
    CROWD = "crowd with polygons", "crowds are groups stored as RLE, and are not learned: is it one?", False
    LEAK = "image in two splits", "its results are too good: keep it in one of them", False
    ORPHAN = "label without image", "the label is ignored", False

    def __init__(self, title: str, advice: str, is_error: bool = True) -> None:
        self.title, self.advice, self.is_error = title, advice, is_error


@dataclass(frozen=True)
class Issue:
    """One issue of a data set."""

    type: IssueType
    where: str  # the file, and the annotation, image or line in it
    message: str  # such as "bbox is [1, 2, 3]"
    image_id: int | None = None  # of the affected image, if the annotation file has it

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def describe(issues: Iterable[Issue], limit: int | None = None) -> str:
    """List `issues` by type, one per line: all, or the first `limit` of each type and the number of the others."""
    by_type: dict[IssueType, list[Issue]] = {}
    for issue in issues:
        by_type.setdefault(issue.type, []).append(issue)
    lines = []
    for issue_type, group in by_type.items():
        lines.append(f"  {issue_type.title} ({len(group):,}): {issue_type.advice}")
        lines += [f"    {printable(str(issue))}" for issue in group[:limit]]
        if limit is not None and len(group) > limit:
            lines.append(f"    ... and {len(group) - limit:,} more")
    return "\n".join(lines)


def list_names(names: Sequence[str], limit: int = 5) -> str:
    """Return the first `limit` of `names`, quoted, and the number of the others."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + rest

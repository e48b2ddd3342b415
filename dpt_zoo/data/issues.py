"""What can be wrong with data, and how it is told."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from ..utils.text import printable


class IssueType(Enum):
    """What can be wrong, and what it means or what to do about it.

    An error stops training or evaluation, or would make them learn or measure something false. The others are
    warnings: MMDetection 3 leaves out what they concern, or gets along with it.
    """

    FILE = "annotation file", "it is not COCO's annotations of objects"
    RECORD = "malformed record", "pycocotools and MMDetection need these values"
    DUPLICATE_ID = "duplicate id", "of the records with one id only the last is seen"
    DUPLICATE_CLASS = "duplicate class", "every class needs a name of its own"
    CLASSES = "wrong classes", "labels follow the order of the file's categories: they have to be the same everywhere"
    DUPLICATE_IMAGE = "duplicate image", "under each of its ids it lacks the objects of the others: join them"
    IMAGE_PATH = "path outside the folder", "file_name has to be a path below the folder of images"
    MISSING_IMAGE = "missing image", "put it there, or remove it from the annotations"
    UNREADABLE_IMAGE = "unreadable image", "replace it, or remove it from the annotations"
    IMAGE_SIZE = "wrong image size", "the annotations are of another picture, or of this one before it was changed"
    EMPTY = "empty split", "there is nothing to learn from, or to measure with"
    LABEL = "unreadable label", "it cannot be converted to COCO's format"
    CATEGORY = "unknown category", "the object would be learned as background"
    BOX = "broken box", "bbox is [x, y, width, height]: four finite numbers of pixels, no size negative"
    AREA = "broken area", "area is a finite number of square pixels, not negative"
    POLYGON = "broken polygon", "a polygon is [x1, y1, x2, y2, x3, y3, ...]: finite numbers of pixels, at least six"
    RLE = "broken RLE", "an RLE has the image's size [height, width], and counts that sum to height * width"
    NO_MASK = "missing mask", "the model learns masks: every object needs one"
    OTHER_CLASSES = "further classes", "their objects are left out", False
    UNKNOWN_IMAGE = "unknown image", "the annotation is left out", False
    EMPTY_BOX = "empty box", "an object of less than a pixel's width or height is left out of training", False
    BOX_OUTSIDE = "box outside the image", "the object is left out of training", False
    BOX_ACROSS = "box across the border", "training cuts it off at the image's border", False
    POLYGON_ACROSS = "polygon across the border", "training cuts it off at the image's border", False
    NO_AREA = "area 0", "the object is left out of training", False
    LARGE_AREA = "area larger than the box", "the AP of small, medium and large objects goes by the area", False
    CROWD = "crowd of polygons", "iscrowd 1 is for groups, which are not learned and come as RLE: is it one?", False
    ID_ZERO = "annotation id 0", "COCO's evaluation counts this object as never found: number from 1", False
    ORPHAN = "label without image", "it is left out", False

    def __init__(self, title: str, advice: str, is_error: bool = True) -> None:
        self.title = title
        self.advice = advice
        self.is_error = is_error


@dataclass(frozen=True)
class Issue:
    """One thing that is wrong.

    Attributes:
        type: what sort of thing; it tells whether it is an error or a warning.
        where: the file, and the annotation, image or line in it.
        what: what is wrong there.
        image_id: the image that it concerns, if it is one of the annotation file's.
    """

    type: IssueType
    where: str
    what: str
    image_id: int | None = None


def describe(issues: Iterable[Issue], limit: int | None = None) -> str:
    """List issues by kind, one to a line; with a `limit`, so many of each kind, and how many more there are."""
    by_type: dict[IssueType, list[Issue]] = {}
    for issue in issues:
        by_type.setdefault(issue.type, []).append(issue)
    lines = []
    for issue_type, those in by_type.items():
        lines.append(f"  {issue_type.title} ({len(those):,}): {issue_type.advice}")
        lines += [f"    {printable(f'{issue.where}: {issue.what}')}" for issue in those[:limit]]
        if limit is not None and len(those) > limit:
            lines.append(f"    ... and {len(those) - limit:,} more")
    return "\n".join(lines)


def list_names(names: Sequence[str], limit: int = 5) -> str:
    """The first names, quoted, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + rest

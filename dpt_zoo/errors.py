"""What can go wrong, by kind. Every message says what was wrong, where, and what to do."""


class DPTZooError(Exception):
    """Any error that this package raises on purpose; the command prints it in one line and exits with 2."""


class InputError(DPTZooError, ValueError):
    """An argument that cannot be used: its text names it and what is accepted."""


class UnknownModelError(InputError):
    """A model name that the manifest does not have."""


class ManifestError(DPTZooError):
    """`weights_manifest.json` is missing, unreadable or not of the expected form."""


class OutputError(DPTZooError):
    """A result that could not be written; what was there before is as it was."""


class ImageError(DPTZooError):
    """A file or value that is no readable image."""


class DataError(DPTZooError):
    """Training or evaluation data that cannot be used: its text lists what is wrong, by file and annotation."""


class WeightsError(DPTZooError):
    """Weights that are missing, unreadable, unsafe, or not this model's."""


class FetchError(DPTZooError):
    """Weights that could not be fetched: its text tells each place that was asked, and how to fetch them by hand."""


class OperatorUnavailableError(DPTZooError, NotImplementedError):
    """A compiled operator of mmcv was called that neither an installed mmcv nor torchvision provides."""


class DependencyError(DPTZooError, ImportError):
    """An installed library cannot be imported on this machine."""

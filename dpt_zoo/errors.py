"""The exceptions of this package. Each message names what is wrong and what to do."""


class DPTZooError(Exception):
    """Base class of all exceptions that this package raises. The command prints the message and exits with 2."""


class InputError(DPTZooError, ValueError):
    """An argument is invalid."""


class UnknownModelError(InputError):
    """The manifest has no model of this name."""


class ManifestError(DPTZooError):
    """`weights_manifest.json` is missing, cannot be read, or does not have the expected form."""


class OutputError(DPTZooError):
    """A file or folder cannot be written. An existing file is unchanged."""


class ImageError(DPTZooError):
    """A file or value cannot be read as an image."""


class DataError(DPTZooError):
    """A data set cannot be used for training or evaluation. The message lists the issues."""


class WeightsError(DPTZooError):
    """Weights are missing, cannot be read, are unsafe, or belong to another model."""


class FetchError(DPTZooError):
    """Weights cannot be fetched. The message has the reason for each location, and how to fetch them by hand."""


class ServiceError(DPTZooError):
    """A server of `dpt-zoo serve` cannot be reached, or refuses a request."""


class OperatorUnavailableError(DPTZooError, NotImplementedError):
    """A compiled operator of mmcv was called that neither an installed mmcv nor torchvision provides."""


class DependencyError(DPTZooError, ImportError):
    """A library is not installed, or cannot be imported on this machine. The message has the command to run."""

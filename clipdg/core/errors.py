"""What goes wrong for a user, with the exit code the command line gives for it.

Each message is one sentence: what is wrong, where, what there is, what to do. Anything else that is raised is a bug of
ours and ends with its traceback and exit code 1.
"""


class ClipdgError(ValueError):
    """A mistake that the user can mend; its message is printed after ``clipdg: `` and nothing else is."""

    exit_code = 2


class ConfigError(ClipdgError):
    """A setting, a name or a command line that cannot be meant."""

    exit_code = 2


class DataError(ClipdgError):
    """An image, a label, a caption or a data set that is not what it should be."""

    exit_code = 3


class RecordError(ClipdgError):
    """A record that is missing, cut, altered or of another schema."""

    exit_code = 4


class StorageError(ClipdgError):
    """A disk that is full or a place that cannot be written."""

    exit_code = 5


class DivergedError(ClipdgError):
    """A loss, gradient, feature or logit that is not finite."""

    exit_code = 6


class UnsafeError(ClipdgError):
    """A file that could run code when it is opened."""

    exit_code = 7


class NetworkError(ClipdgError):
    """Something that is not here and cannot be downloaded now."""

    exit_code = 8


class OutOfMemoryError(ClipdgError):
    """More memory than the device or the machine has."""

    exit_code = 9

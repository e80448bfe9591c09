"""The errors a user can meet, each with the exit code of its kind.

Every message names the thing (file, key, value), says what is wrong with it, and ends with the next
step. The command line prints the message alone; `--debug` adds the traceback.
"""


class PixelwiseError(Exception):
    """Something went wrong at run time; the base of all errors raised on purpose."""

    exit_code = 1


class UsageError(PixelwiseError):
    """A wrong option, recipe key or argument value."""

    exit_code = 2


class DataError(PixelwiseError):
    """A picture, annotation or data set that cannot be used as it is."""

    exit_code = 3


class ModelError(PixelwiseError):
    """A checkpoint, model name or weight that does not fit."""

    exit_code = 4


class ConversionError(ModelError):
    """Another project's checkpoint that the rules of its converter do not cover exactly."""


class ExportError(PixelwiseError):
    """An export that failed or did not reproduce the model."""

    exit_code = 5


class MissingExtraError(PixelwiseError):
    """A feature whose optional dependency is not installed."""

    exit_code = 5

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an extra: pip install 'pixelwise[{extra}]'")

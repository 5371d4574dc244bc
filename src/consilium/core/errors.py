"""Every error that Consilium raises on purpose."""

from __future__ import annotations


class ConsiliumError(Exception):
    """Base of all errors of ours; its message says what came, what was expected and what to do.

    ::

        ConsiliumError
        ├── ConfigError            a config file, key, value or override is wrong
        ├── DataError              rows, files or splits cannot be used as they are
        │   ├── BadRowsError       rows of a source failed validation (each named with file and line)
        │   └── ImageError         one image cannot be read (missing, truncated, too large, not an image)
        ├── StoreError             a prepared store is missing, incomplete or damaged
        ├── SearchError            an index of a collection is missing, damaged or of another bundle
        ├── WeightsError           weights do not fit the model, or are in a form that is never unpickled
        ├── BundleError            a bundle is missing, corrupt or newer than this version
        ├── ExportError            a bundle does not fit a form, its folder is in use, or the hub refuses it
        ├── RunFolderError         a run folder exists, is in use or cannot be resumed
        ├── MissingExtraError      an optional dependency is not installed
        └── TrainingError          training stopped (exit code 1)
            ├── NonFiniteLossError loss became NaN or infinite
            ├── MemoryExhaustedError  the device ran out of memory
            └── InterruptedRunError   Ctrl-C or another signal; a resumable checkpoint was left; a KeyboardInterrupt too

    ``exit_code`` is what the command line returns: 2 for what the user can mend, 1 for a failed run.
    """

    exit_code = 2

    def __str__(self) -> str:
        """The message; what a damaged name or file brought into it and cannot be written as UTF-8 is escaped."""
        return super().__str__().encode(errors="backslashreplace").decode()


class ConfigError(ConsiliumError):
    """A config file, key, value or override is wrong."""


class DataError(ConsiliumError):
    """Rows, files or splits cannot be used as they are."""


class BadRowsError(DataError):
    """Rows of a source failed validation."""


class ImageError(DataError):
    """One image cannot be read."""


class StoreError(ConsiliumError):
    """A prepared store is missing, incomplete or damaged."""


class SearchError(ConsiliumError):
    """An index of a collection is missing, damaged or of another bundle."""


class WeightsError(ConsiliumError):
    """Weights do not fit the model or are in a form that is never unpickled."""


class BundleError(ConsiliumError):
    """A bundle is missing, corrupt or newer than this version."""


class ExportError(ConsiliumError):
    """A bundle does not fit the form of another library, its folder is in use, or the hub refuses it."""


class RunFolderError(ConsiliumError):
    """A run folder exists, is in use or cannot be resumed."""


class MissingExtraError(ConsiliumError):
    """An optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the extra '{extra}', which is not installed. "
            f"Install it with: pip install 'consilium[{extra}]'"
        )
        self._given = (feature, extra)

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), self._given  # so that it survives the way from a worker process


class TrainingError(ConsiliumError):
    """Training stopped before its end."""

    exit_code = 1


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""


class MemoryExhaustedError(TrainingError):
    """The device ran out of memory."""


class InterruptedRunError(TrainingError, KeyboardInterrupt):
    """The run was interrupted and left a resumable checkpoint; to Python it is what Ctrl-C always raises."""

    exit_code = 130

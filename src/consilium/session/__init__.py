"""Training: the one place where all sections of an experiment meet."""

from consilium.core.errors import MissingExtraError

try:
    import accelerate as _accelerate  # noqa: F401
except ImportError:
    raise MissingExtraError("Training", "train") from None

from consilium.session.results import RunResult, TrainResult
from consilium.session.train import train

__all__ = ["RunResult", "TrainResult", "train"]

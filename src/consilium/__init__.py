"""Train, judge and serve a council of medical image and text models.

The public names are resolved when they are first used: ``import consilium`` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consilium.calibrating import CalibrateResult, calibrate
    from consilium.comparison import CompareResult, compare
    from consilium.core.errors import ConsiliumError
    from consilium.council import Council, build_council, load
    from consilium.crossval import CrossvalResult, cross_validate
    from consilium.data.batches.rows import Query
    from consilium.ensembling import ensemble
    from consilium.evaluating import evaluate
    from consilium.experiment import Experiment
    from consilium.explaining import explain
    from consilium.predictor import Predictor
    from consilium.search import Index
    from consilium.session import TrainResult, train

    __version__: str

__all__ = [
    "CalibrateResult",
    "CompareResult",
    "ConsiliumError",
    "Council",
    "CrossvalResult",
    "Experiment",
    "Index",
    "Predictor",
    "Query",
    "TrainResult",
    "__version__",
    "build_council",
    "calibrate",
    "compare",
    "cross_validate",
    "ensemble",
    "evaluate",
    "explain",
    "load",
    "train",
]

_HOMES = {
    "CalibrateResult": "consilium.calibrating",
    "CompareResult": "consilium.comparison",
    "ConsiliumError": "consilium.core.errors",
    "Council": "consilium.council",
    "CrossvalResult": "consilium.crossval",
    "Experiment": "consilium.experiment",
    "Index": "consilium.search",
    "Predictor": "consilium.predictor",
    "Query": "consilium.data.batches.rows",
    "TrainResult": "consilium.session",
    "build_council": "consilium.council",
    "calibrate": "consilium.calibrating",
    "compare": "consilium.comparison",
    "cross_validate": "consilium.crossval",
    "ensemble": "consilium.ensembling",
    "evaluate": "consilium.evaluating",
    "explain": "consilium.explaining",
    "load": "consilium.council",
    "train": "consilium.session",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("consilium")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'consilium' has no attribute '{name}'; it has: {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)

"""Configs and command lines of other scripts as experiments of ours."""

from consilium.converting.conversion import Conversion, convert
from consilium.converting.writing import report, yaml_of

__all__ = ["Conversion", "convert", "report", "yaml_of"]

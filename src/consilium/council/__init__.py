"""A router and its experts behind one ``predict``: building a council, and asking it."""

from consilium.council.answering import Council
from consilium.council.building import build_council
from consilium.council.opening import load

__all__ = ["Council", "build_council", "load"]

"""The hub of pretrained weights where there may be no network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from huggingface_hub import constants, get_session

SECONDS = 5.0  # for an answer of any kind


@contextlib.contextmanager
def cached_if_unreachable() -> Iterator[str]:
    """Let the hub's client take what its cache holds where the hub does not answer, instead of a minute of retries.

    Gives the reason, or nothing where the hub answers.
    """
    asked = constants.HF_HUB_OFFLINE
    reason = "HF_HUB_OFFLINE is set" if asked else _unreachable()
    constants.HF_HUB_OFFLINE = bool(reason)
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = asked


def _unreachable() -> str:
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # the client's network library is another one in each of its versions
        return f"{constants.ENDPOINT} does not answer: {error or type(error).__name__}"
    return ""

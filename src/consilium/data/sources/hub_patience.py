"""What goes wrong between here and the Hugging Face hub: what passes is waited for, the rest is explained."""

from __future__ import annotations

import contextlib
import logging
import random
import re
import time
from collections.abc import Iterator
from typing import Any

from consilium.core.errors import DataError
from consilium.core.reporter import Reporter
from consilium.data.sources.config import HubDataset

LONGEST_WAIT = 60.0
UNREACHED = 1  # more tries where no answer ever came: without a network, waiting helps nobody
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_HTTP_LIBRARIES = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "requests", "urllib3"})


class Patience:
    """Waits after what may pass: a rate limit, a server in trouble, a lost connection; longer each time.

    ``reached`` says whether the hub has answered before; until it does, it is given up soon.
    """

    def __init__(self, dataset: HubDataset, reporter: Reporter, *, reached: bool = True) -> None:
        self.dataset, self.reporter, self.tries, self.reached = dataset, reporter, 0, reached

    def wait(self, error: Exception) -> None:
        """Wait after a failure that may pass; any other, and one too many, is a DataError."""
        response = next((found for one in _chain(error) if (found := _response(one)) is not None), None)
        status = None if response is None else int(response.status_code)
        reason = _what_may_pass(error, status)
        if reason is None:
            raise _explained(self.dataset, error, status) from error
        self.reached = self.reached or status is not None
        most = self.dataset.retries if self.reached else min(self.dataset.retries, UNREACHED)
        if self.tries >= most and not self.reached:
            raise DataError(
                f"{self.dataset.path} could not be fetched: {reason}, {self.tries + 1} times running, and nothing of "
                "it is here. Connect this machine to the network, or give the folder of a local copy as the path."
            ) from error
        if self.tries >= most:
            raise DataError(
                f"{self.dataset.path} could not be fetched: {reason}, {self.tries + 1} times running. What was fetched "
                "is kept: run again later to go on, or raise `retries` or `delay` of the source."
            ) from error
        self.tries += 1
        told = "" if response is None else response.headers.get("Retry-After", "")
        seconds = float(told) if told.isdigit() else min(2.0**self.tries, LONGEST_WAIT)
        # So that many machines that were turned away together do not come back together.
        seconds *= 1 + 0.25 * random.random()
        self.reporter.line(f"{self.dataset.path}: {reason}, waiting {seconds:.0f} s (try {self.tries} of {most})")
        time.sleep(seconds)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _response(error: BaseException) -> Any:
    from huggingface_hub.errors import HfHubHTTPError

    return error.response if isinstance(error, HfHubHTTPError) else None


def _what_may_pass(error: BaseException, status: int | None) -> str | None:
    """What went wrong, if it may go right another time."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    causes = list(_chain(error))
    if any(isinstance(one, OfflineModeIsEnabled) for one in causes):
        return None
    if status is not None:
        if status not in _PASSING:
            return None
        return "rate limited" if status == 429 else f"the hub answered {status}"
    for one in causes:
        if isinstance(one, (ConnectionError, TimeoutError)) or type(one).__module__.split(".")[0] in _HTTP_LIBRARIES:
            return f"no connection to the hub ({type(one).__name__})"
    return None


def _explained(dataset: HubDataset, error: BaseException, status: int | None) -> DataError:
    """What a person can do about an error that does not pass by itself."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    name = dataset.path + (f" ({dataset.revision})" if dataset.revision is not None else "")
    if any(isinstance(one, OfflineModeIsEnabled) for one in _chain(error)):
        return DataError(
            f"{name} is not here yet and HF_HUB_OFFLINE is set. Unset it to fetch the dataset, or give the folder of a "
            "local copy as the path."
        )
    if status in (401, 403):
        return DataError(
            f"{name}: the hub refuses access ({status}). Correct the id; if the dataset is private or gated, ask for "
            "access on its page and set HF_TOKEN to a token that may read it."
        )
    if status == 404:
        return DataError(
            f"{name} is not on the hub (404). Correct the id or the revision; if the dataset is private, set HF_TOKEN."
        )
    words = " ".join(str(error).split())[:500]
    return DataError(
        f"{name} cannot be read ({type(error).__name__}: {words}). Check path, config_name, data_dir and revision."
    )


@contextlib.contextmanager
def quiet_libraries(dataset: HubDataset, reporter: Reporter) -> Iterator[None]:
    """Let huggingface_hub's waits be told by the reporter, and leave other tries to us: ``datasets`` would go on, in
    silence, for up to twenty minutes."""
    import datasets

    limits = dict.fromkeys(("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES"), 1)
    limits |= {name: 0 for name in vars(datasets.config) if re.fullmatch(r"STREAMING_\w+_RETRY_INTERVAL", name)}
    before = {name: getattr(datasets.config, name) for name in limits}
    logger = logging.getLogger("huggingface_hub")
    handlers, bars = logger.handlers, not datasets.are_progress_bars_disabled()
    for name, limit in limits.items():
        setattr(datasets.config, name, limit)
    logger.handlers = [_Teller(dataset.path, reporter)]
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for name, limit in before.items():
            setattr(datasets.config, name, limit)
        logger.handlers = handlers
        if bars:
            datasets.enable_progress_bars()


class _Teller(logging.Handler):
    """Passes the waits of huggingface_hub on to a reporter."""

    def __init__(self, name: str, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._name, self._reporter = name, reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.line(f"{self._name}: {record.getMessage()}")

"""``calibrate``: temperatures and thresholds of a bundle, chosen anew on the labelled cases of another site."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from consilium.calibrating.bundles import CalibrateResult, calibrate_bundle, restore_bundle
from consilium.calibrating.councils import calibrate_council, restore_council
from consilium.console import reporting
from consilium.core.errors import ConfigError
from consilium.core.reporter import Reporter
from consilium.manifest import CouncilManifest, local_bundle, read_header


def calibrate(
    bundle: str | Path,
    *,
    data: str | Path,
    out: str | Path,
    name: str | None = None,
    split: str | None = None,
    wanted_accuracy: float | None = None,
    on_bad_row: Literal["stop", "quarantine"] | None = None,
    device: str = "auto",
    quiet: bool = False,
    reporter: Reporter | None = None,
) -> CalibrateResult:
    """Write a bundle into ``out`` that answers as the labelled cases of ``data`` teach, with a report beside it.

    ``data`` and ``split`` are as ``evaluate`` takes them. ``name`` is what the calibration is called (default: that of
    the file or folder). ``wanted_accuracy``: of answers, which thresholds are chosen for (default: that of the bundle).
    The weights stay; the new bundle also keeps every calibration that the old one knew (see ``restore``). Figures
    before and after are those of cases that did not choose the calibration that answered them. Data of other labels,
    too few cases and cases that the bundle learned from are errors.

    Of a council each bundle that answers with labels is calibrated on its own cases: the router on the routes, an
    expert on the answers of the cases whose true route is its own; ``data`` are as ``evaluate`` takes them there.
    A bundle whose cases do not suffice stays as it was, with a warning; all of them are an error.
    """
    target = Path(out).expanduser()
    with reporting(reporter, quiet=quiet) as shown:
        _refuse_existing(target)
        folder = local_bundle(bundle)
        run = calibrate_council if isinstance(read_header(folder), CouncilManifest) else calibrate_bundle
        return run(
            folder,
            data=str(data),
            target=target,
            name=name,
            split=split,
            wanted_accuracy=wanted_accuracy,
            on_bad_row=on_bad_row,
            device=device,
            reporter=shown,
        )


def restore(bundle: str | Path, *, name: str, out: str | Path) -> Path:
    """Write a calibrated bundle into ``out`` that answers by its calibration ``name`` (``training``: the first).

    Of a council all bundles go back that keep a calibration of this name; where none does, it is a ConfigError.
    """
    target = Path(out).expanduser()
    _refuse_existing(target)
    folder = local_bundle(bundle)
    run = restore_council if isinstance(read_header(folder), CouncilManifest) else restore_bundle
    run(folder, target, name=name)
    return target


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise ConfigError(f"--out is {target}, which exists already; name a new folder for the calibrated bundle.")


__all__ = ["CalibrateResult", "calibrate", "restore"]

"""The package from Python: images in memory, progress on the screen, Ctrl-C, errors of calls, and what objects show."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import consilium
from consilium.core.errors import BundleError, ConfigError, ConsiliumError, InterruptedRunError
from consilium.core.evaluation import Evaluation
from consilium.core.reporter import Silent
from consilium.crossval import CrossvalResult
from consilium.data.store.prepare import prepare
from consilium.evaluation.report.crossval import FoldFigures
from consilium.predictor import Predictor, case_outputs
from consilium.session import RunResult, TrainResult
from tests.labelled import load_labelled
from tests.test_bundle import predictor as predictor
from tests.tiny import Recorder, Run, tiny_experiment

# -- Images in memory ---------------------------------------------------------------------------------------------


def answers(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "image"} for record in records]


def test_pixels_are_answered_as_their_file_is(predictor: Predictor, tiny_images: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.open(tiny_images / "test" / "ct" / "000.jpg").save(path)
    array = np.asarray(Image.open(path).convert("RGB"))
    expected = predictor.predict(path)
    for given in (
        Image.open(path),
        array,
        [array],
        [Image.open(path)],
        iter([array]),
        (x for x in [array]),
        array[None],
    ):
        assert answers(predictor.predict(given)) == answers(expected)  # type: ignore[arg-type]
    deep = tmp_path / "deep.png"
    Image.fromarray(array[..., 0].astype(np.uint16) * 7).save(deep)
    assert answers(predictor.predict(np.asarray(Image.open(deep)))) == answers(predictor.predict(deep))


def test_paths_of_every_kind(predictor: Predictor, tiny_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_images / "test" / "ct" / "000.jpg"
    expected = answers(predictor.predict(path))
    monkeypatch.setenv("HOME", str(tiny_images))
    given = [str(path), np.str_(path), path.as_uri(), "~/test/ct/000.jpg", bytearray(path.read_bytes())]
    records = predictor.predict(given)  # type: ignore[arg-type]
    assert answers(records) == expected * len(given)
    assert [type(record["image"]) for record in records] == [str] * len(given)
    assert answers(predictor.predict(np.array([str(path)]))) == expected


def test_what_is_no_image_is_an_entry_among_answers(predictor: Predictor, tiny_images: Path) -> None:
    path = tiny_images / "test" / "ct" / "000.jpg"
    array = np.asarray(Image.open(path).convert("RGB"))
    data = path.read_bytes()
    truncated = Image.open(io.BytesIO(data[: len(data) // 2 + 300]))
    wrong = [
        None, 3, float("nan"), array / 255, array[..., :1], array.transpose(2, 0, 1), torch.zeros(3, 8, 8), {}, "",
        array.tolist(), [array, None], truncated, Image.new("RGB", (0, 0)), np.zeros((0, 3), np.uint8),
        io.BytesIO(b"x"),
    ]  # fmt: skip
    items = [item for one in wrong for item in (one, path)]
    records = predictor.predict(items)
    assert ["error" in record for record in records] == [True, False] * len(wrong)
    json.dumps(records, allow_nan=False)
    for one in wrong:
        if not isinstance(one, list):
            (record,) = predictor.predict(one)  # type: ignore[arg-type]
            assert "error" in record


def test_a_list_of_arrays_is_a_case_of_several_views(predictor: Predictor, tiny_images: Path) -> None:
    left, right = tiny_images / "test" / "ct" / "000.jpg", tiny_images / "test" / "mri" / "000.jpg"
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in (left, right)]
    (by_path,) = predictor.predict([[left, right]])
    (by_array,) = predictor.predict([pixels])
    assert by_array["probabilities"] == pytest.approx(by_path["probabilities"], abs=0.02)
    assert by_array["image"] == [f"array[{'x'.join(map(str, array.shape))} uint8]" for array in pixels]


def test_pixels_are_decoded_in_this_process(tiny_run: Run, tiny_images: Path) -> None:
    paths = sorted((tiny_images / "test").rglob("*.jpg"))
    model = Predictor.load(tiny_run.folder, batch_size=5, workers=2)
    opened = [Image.open(path) for path in paths]
    expected = model.predict(paths)
    for records in (model.predict(opened), model.predict(list(opened))):
        for record, other in zip(records, expected, strict=True):
            assert record["probabilities"] == pytest.approx(other["probabilities"], abs=0.02)


def test_a_generator_is_read_as_it_goes(tiny_run: Run, tiny_images: Path) -> None:
    paths = sorted((tiny_images / "test").rglob("*.jpg"))
    model = consilium.load(tiny_run.folder, batch_size=4)
    asked = []
    stream = model.stream(asked.append(path) or path for path in paths)  # type: ignore[func-returns-value]
    first = next(stream)
    assert len(asked) == 4
    assert [first, *stream] == model.predict(paths)


# -- Progress, Ctrl-C ---------------------------------------------------------------------------------------------


def test_a_training_shows_how_far_it_is_unless_quiet(
    tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny_experiment(tiny_images, tmp_path)
    result = consilium.train(experiment)
    assert result is not None
    assert "validation after step" in capsys.readouterr().out
    consilium.evaluate(result.bundle, out=tmp_path / "a")
    assert "report:" in capsys.readouterr().out
    consilium.train(experiment, quiet=True)
    consilium.evaluate(result.bundle, out=tmp_path / "b", quiet=True)
    recorder = Recorder()
    consilium.evaluate(result.bundle, out=tmp_path / "c", reporter=recorder)
    assert capsys.readouterr().out == ""
    assert any("report:" in line for line in recorder.lines)


class CtrlC(Silent):
    """Presses Ctrl-C in the first step."""

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        if name == "train" and done == 1:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_is_a_keyboard_interrupt_that_says_where_the_checkpoint_is(tiny_images: Path, tmp_path: Path) -> None:
    experiment = tiny_experiment(tiny_images, tmp_path)
    with pytest.raises(KeyboardInterrupt, match=r"stopped by SIGINT after step 1 of 2; a checkpoint is in ") as stopped:
        consilium.train(experiment, reporter=CtrlC())
    assert isinstance(stopped.value, InterruptedRunError)
    assert consilium.train(experiment, resume=True, quiet=True) is not None


# -- Errors of calls ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda run: consilium.load(None), BundleError, "the bundle is None; expected the path of the folder"),
        (lambda run: consilium.load(""), BundleError, "the bundle is ''"),
        (lambda run: consilium.load(b"runs"), BundleError, "the bundle is b'runs'"),
        (lambda run: consilium.evaluate(consilium.load(run)), BundleError, "the bundle is <Predictor 'tiny'"),
        (lambda run: consilium.load(run / "bundle.json"), BundleError, "is a file; give the folder"),
        (lambda run: consilium.load(run.parent), BundleError, "one of those in it, .*for instance, the newest"),
        (lambda run: consilium.load(run / "none"), BundleError, "does not exist; give the folder of a finished run"),
        (lambda run: consilium.load(run, device="gpu"), ConfigError, "the device is 'gpu', but this machine has"),
        (lambda run: consilium.load(run, batch_size=0), ConfigError, "`batch_size` is 0"),
        (lambda run: consilium.train("a.yaml"), ConfigError, "the experiment is 'a.yaml'; expected what .*load"),
        (lambda run: consilium.cross_validate({}, folds=2), ConfigError, "of type dict; expected what"),
        (lambda run: consilium.Experiment.load(None), ConfigError, "of type NoneType; expected the path"),
        (lambda run: consilium.Experiment.load(run / "config.yaml", overrides="a=1"), ConfigError, "expected a list"),
        (lambda run: consilium.Experiment.load(run / "config.yaml", overrides={}), ConfigError, "expected a list"),
    ],
)  # fmt: skip
def test_what_a_call_cannot_take_is_named(
    tiny_run: Run, call: Callable[[Path], object], error: type[ConsiliumError], said: str
) -> None:
    with pytest.raises(error, match=said):
        call(tiny_run.folder)


def test_addresses_of_this_machine_and_devices_of_torch(tiny_run: Run) -> None:
    folder = tiny_run.folder.absolute()
    assert consilium.load(folder.as_uri(), device=torch.device("cpu")).task.labels.names == ("ct", "mri", "xray")


def test_a_limit_of_no_case_is_refused(tiny_images: Path, tmp_path: Path) -> None:
    for limit in (0, -1):
        with pytest.raises(ConfigError, match=f"limit is {limit}; expected 1 or more"):
            consilium.train(tiny_experiment(tiny_images, tmp_path), limit=limit)


# -- What objects show --------------------------------------------------------------------------------------------


def test_objects_say_in_one_line_what_they_are(tiny_run: Run, predictor: Predictor) -> None:
    experiment = consilium.Experiment.load(tiny_run.folder / "config.yaml")
    prepared = prepare(experiment.data)
    data = load_labelled(experiment.data, splits=(), reporter=Silent())
    figures = {"accuracy": 0.91234, "macro_auroc": None, "macro_f1": 0.5}
    evaluation = Evaluation(split="test", cases=1234, metrics=figures, tables={"per_class": [{"a": 1}] * 99})
    run = RunResult(Path("runs/a"), {"val": {"accuracy": 0.1}, "test": figures})
    fold = FoldFigures("fold 0", "runs/f", train=8, val=4, test=1, metrics=figures, intervals={})
    store = prepared.store
    for found, expected in (
        (experiment, "<Experiment 'tiny': classify by test_resnet on images, seed 0>"),
        (predictor, "<Predictor 'tiny': <LabelTree of 3 labels: ct, mri, xray>, images of 32 x 32 pixels, on cpu>"),
        (predictor.manifest, f"<Manifest of 'tiny', {tiny_run.manifest['created']}: classify>"),
        (store, f"<Store {store.path}: 48 cases of images>"),
        (store.table, f"<CaseTable of 48 cases in {store.path}>"),
        (data.cases, "<Cases: train 24, val 12, test 12>"),
        (evaluation, "<Evaluation of test: 1,234 cases, accuracy 0.912, macro_f1 0.500>"),
        (run, "<RunResult runs/a: test accuracy 0.912, macro_f1 0.500>"),
        (TrainResult(Path("runs/a"), [run]), "<TrainResult runs/a: test accuracy 0.912, macro_f1 0.500>"),
        (TrainResult(Path("r"), [run] * 2), "<TrainResult r: 2 runs, the first: test accuracy 0.912, macro_f1 0.500>"),
        (fold, "<FoldFigures of fold 0: 1 test case, accuracy 0.912, macro_f1 0.500>"),
        (
            CrossvalResult(Path("runs/c"), [fold] * 3, evaluation, {"x": "no case"}),
            "<CrossvalResult runs/c: 3 folds, 1 skipped, pooled accuracy 0.912, macro_f1 0.500>",
        ),
    ):
        assert repr(found) == str(found) == expected
    assert repr(prepared).startswith("<Prepared: unchanged, 0 bad rows, <Store")
    assert repr(case_outputs(predictor, data.studied, "test")).startswith("<Outputs of 12 cases: logits [12, 3], ")
    for shown in (data, store.manifest):
        assert len(repr(shown)) < 800

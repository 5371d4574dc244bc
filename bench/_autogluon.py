"""One training of AutoGluon, in an environment of its own: what to do comes as JSON on the standard input.

This file imports nothing of Consilium. Its answers go to the file that the request names: of each table of cases the
labels, in its order, and the figure on validation.
"""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
from autogluon.multimodal import MultiModalPredictor


def main() -> None:
    """Train within the time given, and answer."""
    asked = json.load(sys.stdin)
    tables = {name: pd.read_csv(path, dtype={"label": str}) for name, path in asked["tables"].items()}
    folder = Path(asked["folder"]) / "autogluon"
    predictor = MultiModalPredictor(
        label="label", problem_type="multiclass", eval_metric="f1_macro", path=str(folder), verbosity=1
    )
    predictor.fit(
        train_data=tables.pop("train"),
        tuning_data=tables["val"],
        time_limit=asked["seconds"],
        seed=0,
        column_types={"image": "image_path", "text": "text"},
        hyperparameters={
            "model.names": ["timm_image", "hf_text", "fusion_mlp"],
            "model.timm_image.checkpoint_name": asked["image_tower"],
            "model.hf_text.checkpoint_name": asked["text_tower"],
            "model.hf_text.max_text_len": asked["context"],
            "env.num_gpus": 0,
            "env.num_workers": 0,
            "env.num_workers_inference": 0,
        },
    )
    answers = {name: [str(label) for label in predictor.predict(table)] for name, table in tables.items()}
    Path(asked["out"]).write_text(json.dumps(answers), encoding="utf-8")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""Every name of open_clip is read, or refused with what it has; its weights are not needed for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import transformers

from consilium.core.errors import ConfigError, WeightsError
from consilium.models.checkpoints import open_clip as reader
from consilium.models.checkpoints.find import find_model
from consilium.models.hub import MODELS

REFUSED = {  # families, by how their names begin
    "coca_": r"a decoder of texts \(multimodal_cfg\), as CoCa has; Consilium does not read this architecture",
    "mt5-": r"the reading half of a model that writes texts \(google/mt5-\w+, of type mt5\); Consilium does not",
    "nllb-": r"the reading half of a model that writes texts \(facebook/nllb-\S+, of type m2m_100\); Consilium does",
}
ENCODERS: dict[str, Any] = {  # whose configs lie on the hub, by how their names begin
    "roberta-": transformers.RobertaConfig,
    "xlm-roberta-": transformers.XLMRobertaConfig,
    "google/mt5-": transformers.MT5Config,
    "facebook/nllb-": transformers.M2M100Config,
}
NAMES = open_clip.list_models()


def config_of(name: str) -> dict[str, Any]:
    return dict(open_clip.get_model_config(name) or {})


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configs of all text towers from the hub, as if they had been carried here."""
    for name in NAMES:
        if encoder := config_of(name)["text_cfg"].get("hf_model_name"):
            kind = next(kind for start, kind in ENCODERS.items() if encoder.startswith(start))
            kind().save_pretrained(tmp_path / encoder)
    monkeypatch.setenv(MODELS, str(tmp_path))


def test_every_name_is_read_or_refused(carried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """How wide a tower of timm is needs the tower; it is not built here, since some have billions of parameters."""
    monkeypatch.setattr(reader, "timm_width", lambda name, pool: 64)
    for name in NAMES:
        model = find_model(name, weights="not read")
        why = next((why for start, why in REFUSED.items() if name.startswith(start)), None)
        if why is not None:
            with pytest.raises(ConfigError, match=rf"^task.model '{name}' has {why}"):
                _ = model.layout
            continue
        layout, own = model.layout, config_of(name)
        assert layout.text_projection.sizes[-1] == own["embed_dim"], name
        assert layout.text.context_length == own["text_cfg"].get("context_length", 77), name
        assert layout.loss == ("softmax" if own.get("init_logit_bias") is None else "sigmoid"), name
    assert all(any(name.startswith(start) for name in NAMES) for start in REFUSED), "a family that is no more"


def test_without_a_network_the_text_tower_to_fetch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        WeightsError, match=r"config of .*'roberta-base' cannot .* `consilium models fetch roberta-base"
    ):
        _ = find_model("roberta-ViT-B-32", weights="not read").layout

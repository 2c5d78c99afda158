"""Small encoders in, their hidden states by transformers out: the golden of ``tests/graph/test_encoder.py``.

    pip install '.[oracle]' && python tests/make_encoder_golden.py

Run once; what it writes is committed, so that no test needs torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from encoders import CONFIGS, TOKENS, TYPES, drawn
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModel

OUT = Path(__file__).parent / "golden" / "encoders.safetensors"


def hidden(fields: dict) -> np.ndarray:
    """The last hidden states [T, hidden] of the model of these fields."""
    values = dict(fields)
    model = AutoModel.from_config(AutoConfig.for_model(values.pop("model_type"), **values)).float().eval()
    state = {name: torch.from_numpy(drawn(name, tuple(t.shape))) for name, t in model.state_dict().items()
             if t.is_floating_point()}
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys, missing
    inputs = {"input_ids": torch.tensor([TOKENS])}
    if fields["model_type"] == "bert":
        inputs["token_type_ids"] = torch.tensor([TYPES])
    with torch.no_grad():
        return model(**inputs).last_hidden_state[0].numpy()


if __name__ == "__main__":
    save_file({name: hidden(fields) for name, fields in CONFIGS.items()}, OUT)

"""The rows of language models, with a small model in the place of the large ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from random_models import BASE

from openlpu.partition.split import Split
from openlpu.tradeoff import validate_models
from openlpu.tradeoff.validate import Kind, compare
from openlpu.tradeoff.validate_models import Model


def test_each_row_is_computed_from_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Model("small", Split(2, 2), 300, (256,))
    monkeypatch.setattr(validate_models, "shape", lambda name, context: replace(BASE, context=context))
    for name in ("LLAMA_2_70B", "LLAMA_2_7B", "LLAMA_3_8B", "MISTRAL", "MIXTRAL"):
        monkeypatch.setattr(validate_models, name, small)
    monkeypatch.setattr(validate_models, "PROMPT", 16)
    rows = [row for row in validate_models.rows() if row.share]
    assert all(row.long and row.kind is Kind.PREDICTED and row.missing for row in rows)
    assert not any(result.computed for result in compare(rows))
    found = {result.row.id: result.ours for result in compare(rows, full=True)}
    assert found["L1"] == pytest.approx(1000 / found["P2"]) and found["P2"] < found["P1"] < 16 * found["P2"]
    assert 0 < found["P3"] < found["P4"] and found["L1.3"] > found["L1"]
    program = validate_models.compiled(small)
    assert found["L1.2"] == found["L4.2"] == pytest.approx(1e6 * program.starts(1)[1] / 900e6), "one layer a stage"
    assert validate_models.layers_before(small) == 1
    assert [row.id for row in validate_models.rows() if not row.share] == ["L8.3"]
    assert rows[0].configuration == "ours: 4 chips, 2 stages of 2, context 300"

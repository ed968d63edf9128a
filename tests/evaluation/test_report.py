from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mien.evaluation.report import Environment, markdown_table, write_json
from mien.evaluation.shape import DistanceSummary


def test_table_columns_have_one_width():
    lines = markdown_table(["name", "value"], [["a long name", 1], ["b", 22.5]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| ----------- | ----: |"


def test_json_holds_the_environment(tmp_path: Path):
    path = tmp_path / "new" / "figures.json"
    write_json(path, environment=Environment.current(), results=[DistanceSummary(1.0, 0.5, 2.0)])
    document = json.loads(path.read_text())
    assert document["environment"]["torch"] == torch.__version__
    assert document["results"] == [{"mean": 1.0, "median": 0.5, "p90": 2.0}]
    assert torch.__version__ in str(Environment.current())


@dataclass(frozen=True)
class Measured:
    value: Any


def test_json_accepts_arrays_and_paths_only(tmp_path: Path):
    path = tmp_path / "figures.json"
    for value, written in [(np.float32(1), 1), (torch.ones(2), [1, 1]), (Path("a"), "a")]:
        write_json(path, environment=Environment.current(), results=Measured(value))
        assert json.loads(path.read_text())["results"]["value"] == written
    with pytest.raises(TypeError, match="object"):
        write_json(path, environment=Environment.current(), results=Measured(object()))

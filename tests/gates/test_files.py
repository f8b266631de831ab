"""A file of gates is for one model, and says what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from expertflow.configs.schema import Config
from expertflow.errors import UsageError
from expertflow.tests.runtime.fake_survey import fake_survey
from expertflow.workers.gates.files import KIND, VERSION, GateFacts, load_gates, save_gates
from safetensors.torch import save_file

FACTS = GateFacts(fingerprint="a" * 32, layers=3, experts=10, top_k=2, width=4, bottleneck=5)
SURVEY = msgspec.structs.replace(fake_survey(layers=3, experts=10), fingerprint="a" * 32)


def test_gates_come_back_as_they_were(tmp_path: Path) -> None:
    gates = FACTS.make()
    save_gates(gates, FACTS, tmp_path / "gates")
    reissue_copies = load_gates(tmp_path / "gates", SURVEY)
    assert reissue_copies.state_dict().keys() == gates.state_dict().keys()
    assert all(torch.equal(reissue_copies.state_dict()[name], value) for name, value in gates.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["gates"]


@pytest.mark.parametrize("change", [{"fingerprint": "b" * 32}, {"layers": 4}, {"experts": 12}])
def test_another_model_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    save_gates(FACTS.make(), FACTS, tmp_path / "gates")
    with pytest.raises(UsageError, match="another model"):
        load_gates(tmp_path / "gates", msgspec.structs.replace(SURVEY, **change))


def write(file: Path, facts: Any, kind: str = KIND, **tensors: torch.Tensor) -> Path:
    save_file({"down": torch.zeros(1), **tensors}, file, {"kind": kind, "facts": msgspec.json.encode(facts).decode()})
    return file


def test_what_is_no_file_of_gates_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "gates"
    with pytest.raises(UsageError, match="cannot be read"):
        load_gates(file, SURVEY)
    file.write_bytes(b"garbage")
    with pytest.raises(UsageError, match="cannot be read"):
        load_gates(file, SURVEY)
    with pytest.raises(UsageError, match="holds no gates"):
        load_gates(write(file, FACTS, kind="another"), SURVEY)
    with pytest.raises(UsageError, match="without their sizes"):
        load_gates(write(file, {"layers": 3}), SURVEY)
    with pytest.raises(UsageError, match=f"version {VERSION + 1}"):
        load_gates(write(file, msgspec.structs.replace(FACTS, version=VERSION + 1)), SURVEY)
    with pytest.raises(UsageError, match="tensors are not those of gates"):
        load_gates(write(file, FACTS), SURVEY)
    with pytest.raises(UsageError, match="tensors are not those of gates"):
        load_gates(write(file, msgspec.structs.replace(FACTS, width=-1)), SURVEY)


def test_a_configuration_names_the_file() -> None:
    with pytest.raises(UsageError, match="needs trained gates"):
        Config.load(hints="gates")
    assert Config.load(hints="gates", gates_file="f").hints == "gates"

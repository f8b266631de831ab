"""Nothing that is loaded can run code: no pickle anywhere, and no code of a checkpoint."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import expertflow
import pytest
from expertflow.configs.schema import Config
from expertflow.errors import CheckpointError, ExpertFlowError
from expertflow.workers.checkpoint.headers import checkpoint_files
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from expertflow.workers.traces.arrays import read_arrays

ROOT = Path(expertflow.__file__).resolve().parent
FILES = [ROOT / "errors.py", ROOT / "__main__.py", ROOT / "__init__.py"] + [
    file for room in ("configs", "ipc", "workers", "runtime") for file in sorted((ROOT / room).rglob("*.py"))
]
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle"}
LOADERS = {("torch", "load"), ("torch", "save"), ("pandas", "read_pickle"), ("torch.hub", "load"), ("yaml", "load")}
BUILT_IN = {"eval", "exec"}
METHODS = {"from_pickle", "read_pickle", "to_pickle", "recv_pyobj", "send_pyobj", "load_module", "exec_module"}
"""Methods that unpickle or run what they read, whatever object they are of."""
MODEL = ROOT / "examples" / "model"


def faults_in(source: str) -> Iterator[str]:
    """Yield what in a module could run code that comes from a file or a socket."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (f"{node.lineno}: import {each.name}" for each in names if _root(each.name) in MODULES)
            case ast.ImportFrom(module=str(module)) if _root(module) in MODULES:
                yield f"{node.lineno}: from {module}"
            case ast.Call(func=ast.Attribute(value=owner, attr=name)) if _is_loader(owner, name):
                yield f"{node.lineno}: {ast.unparse(node.func)}"
            case ast.Call(func=ast.Attribute(attr=name)) if name in METHODS:
                yield f"{node.lineno}: .{name}"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="load")) if not _refuses(node):
                yield f"{node.lineno}: np.load without allow_pickle=False"
            case ast.Call(func=ast.Name(id=name)) if name in BUILT_IN:
                yield f"{node.lineno}: {name}"
            case ast.keyword(arg="trust_remote_code" | "allow_pickle", value=value) if not _is_false(value):
                yield f"{value.lineno}: {node.arg} is not False"
            case _:
                pass


def _is_loader(owner: ast.expr, name: str) -> bool:
    return any(name == each for _, each in LOADERS) and (ast.unparse(owner), name) in LOADERS


def _root(module: str) -> str:
    return module.partition(".")[0]


def _refuses(call: ast.Call) -> bool:
    return any(keyword.arg == "allow_pickle" and _is_false(keyword.value) for keyword in call.keywords)


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def test_no_module_of_the_package_can_run_what_it_reads() -> None:
    found = [f"{file.relative_to(ROOT)}:{fault}" for file in FILES for fault in faults_in(file.read_text())]
    assert len(FILES) > 300 and found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "import torch\ntorch.load(f)", "np.load(f)", "eval(text)",
        "np.load(f, allow_pickle=True)", "socket.recv_pyobj()", "f(trust_remote_code=True)", "f(trust_remote_code=x)",
        "import multiprocessing\nimport marshal",
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(source: str) -> None:
    assert len(list(faults_in(source))) >= 1


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self._mark,)


def test_pickled_arrays_are_refused_and_not_run(tmp_path: Path) -> None:
    import numpy as np

    mark, file = tmp_path / "ran", tmp_path / "trace.npz"
    np.savez(file, counts=np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(ExpertFlowError):
        read_arrays(file, "trace", "Record it again")
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "pytorch_model-00001-of-00002.bin"]
)
def test_pickled_weights_are_refused_by_name_and_not_run(tmp_path: Path, name: str) -> None:
    mark, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors") as refused:
        survey_checkpoint(str(folder))
    assert "safetensors" in refused.value.remedy and not mark.exists()


def test_pickled_weights_beside_safetensors_are_not_read(tmp_path: Path) -> None:
    mark, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(MODEL, folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    assert all(file.suffix == ".safetensors" for file in checkpoint_files(folder))
    survey_checkpoint(str(folder))
    assert not mark.exists()


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    """A repository may name classes of its own (`auto_map`); no option turns them on."""
    mark, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(MODEL, folder)
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Own: pass\n"
    for name in ("modeling_own.py", "configuration_own.py", "tokenization_own.py", "processing_own.py"):
        (folder / name).write_text(code)
    config = json.loads((folder / "config.json").read_text())
    own = {f"Auto{kind}": "modeling_own.Own" for kind in ("Config", "Model", "ModelForCausalLM", "Tokenizer")}
    for more in ({}, {"model_type": "own", "architectures": ["Own"]}):
        changed = config | {"auto_map": own} | more
        (folder / "config.json").write_text(json.dumps(changed))
        try:
            survey_checkpoint(str(folder))
        except CheckpointError as refused:
            assert changed["model_type"] == "own" and refused.where
        assert not mark.exists()


def test_no_option_trusts_code() -> None:
    assert not [name for name in Config.__struct_fields__ if "trust" in name or "remote" in name]

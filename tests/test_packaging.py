"""The package as it is installed: complete, light to import, and its pinned versions whole."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import expertflow
import pytest
from expertflow.configs.user_cache import cache_folder
from expertflow.workers.kernels.library import NOT_BUILT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(expertflow.__file__).parent
SHIPPED = ("configs", "ipc", "workers", "runtime")
EXTRAS = {"serve", "structured", "vision", "plots", "bench", "studies", "ray", "checksums"}
OF_EXTRAS = {
    "starlette", "uvicorn", "httptools", "llguidance", "PIL", "matplotlib", "psutil", "torch_rechub", "wordllama",
    "ray", "isal",
}  # fmt: skip
HEAVY = {"torch", "transformers", "zmq"} | OF_EXTRAS
"""Modules that cost time or memory, or that only an extra brings."""


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_with_code_is_listed_as_a_package() -> None:
    """A forgotten one works from the repository and is missing only in the wheel."""
    folders = {file.parent.relative_to(ROOT) for top in SHIPPED for file in (ROOT / top).rglob("*.py")}
    expected = {"expertflow", *(".".join(("expertflow", *folder.parts)) for folder in folders)}
    assert set(project()["tool"]["setuptools"]["packages"]) == expected


def test_every_package_has_an_init_file() -> None:
    """Without one, resources and relative imports behave differently in a wheel."""
    for name in project()["tool"]["setuptools"]["packages"]:
        assert (ROOT.joinpath(*name.split(".")[1:]) / "__init__.py").is_file(), name


def test_every_other_file_of_a_package_is_package_data() -> None:
    """A preset that is not listed would be unknown once installed."""
    listed = {ROOT / "configs" / file.name for file in (ROOT / "configs").glob("*.toml")}
    listed |= set((ROOT / "runtime" / "page" / "static").iterdir())
    others = {
        file
        for top in SHIPPED
        for file in (ROOT / top).rglob("*")
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
    }
    kernels = ROOT / "workers" / "kernels"
    built = {file for file in others if file.parent == kernels / "native" or file.match("_native*.so")}
    assert others - built == listed
    assert project()["tool"]["setuptools"]["package-data"] == {
        "expertflow": ["py.typed", "examples/prompts.txt", "examples/model/*", "examples/monitoring/*"],
        "expertflow.configs": ["*.toml"],
        "expertflow.runtime.page": ["static/*"],
    }


def test_importing_the_package_is_cheap() -> None:
    """torch costs seconds and hundreds of MB; a script that only reads a configuration must not pay for it."""
    heavy = imported_by("import expertflow; expertflow.Config")
    assert heavy == set()


def test_the_client_needs_no_torch() -> None:
    """A client may run in a small process of its own."""
    assert imported_by("from expertflow import AsyncClient, Batch, Client, Completion, Supervisor") == {"zmq"}


def test_the_command_line_needs_neither_torch_nor_an_extra() -> None:
    """Who installs no extra must still have every command; the missing one is named when it is needed."""
    code = "from expertflow.runtime.command_line.registry import command_classes, parse"
    assert imported_by(f"{code}; command_classes(); parse(['serve'])") == {"zmq"}


def test_public_names_exist() -> None:
    for name in expertflow.__all__:
        assert getattr(expertflow, name) is not None
    with pytest.raises(AttributeError, match="Clientt"):
        getattr(expertflow, "Clientt")  # noqa: B009 - a name that pyright would refuse


def test_constraints_pin_every_dependency() -> None:
    """An unpinned dependency would make tomorrow's installation another one than today's."""
    pinned = constraints()
    described = project()["project"]
    extras = described["optional-dependencies"]
    asked = [*described["dependencies"], *(requirement for listed in extras.values() for requirement in listed)]
    for requirement in map(Requirement, asked):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(version), f"{requirement} does not allow the pinned {version}"


def test_the_tests_have_every_extra() -> None:
    """A test that is skipped for want of a package tests nothing; torchvision must match the torch of the machine.

    `make fuzz` alone needs atheris: the tests change inputs without it. `make test-cluster` alone needs ray, which it
    installs.
    """
    extras = project()["project"]["optional-dependencies"]
    assert EXTRAS | {"dev", "torchvision", "fuzz"} == set(extras)
    assert {requirement for name in EXTRAS - {"ray"} for requirement in extras[name]} <= set(extras["dev"])
    _, _, cluster = (ROOT / "Makefile").read_text().partition("\ntest-cluster:")
    assert "-e '.[ray]'" in cluster.partition("\n\n")[0]


def test_an_extra_is_explained_and_has_limits() -> None:
    """A server or a grammar that changes its interface would break an installation of today's version."""
    page = (ROOT / "docs" / "dependencies.md").read_text()
    extras = project()["project"]["optional-dependencies"]
    assert all(f"| `{name}` |" in page for name in EXTRAS)
    for requirement in map(Requirement, [*extras["serve"], *extras["structured"], *extras["studies"], *extras["ray"]]):
        assert {limit.operator for limit in requirement.specifier} == {">=", "<"}
        assert f"| {requirement.name} |" in page


def test_constraints_name_no_place() -> None:
    """A path, an index or a local build of one machine would fail on every other."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line), line


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert project()["project"]["license"] == "Apache-2.0"


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def imported_by(code: str) -> set[str]:
    """Which heavy modules this code imports, in a fresh interpreter."""
    script = f"{code}\nimport sys\nprint(*({HEAVY!r} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    return set(answer.stdout.split())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel made of the source distribution, which is made of the files that the package needs: both are whole."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_sources(folder / "source")
    code = "from setuptools import build_meta; build_meta.build_sdist(r'{}')".format(folder / "sdist")
    (folder / "sdist").mkdir()
    subprocess.run([sys.executable, "-P", "-c", code], cwd=folder / "source", check=True, capture_output=True)
    (source,) = (folder / "sdist").glob("*.tar.gz")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "-w", str(folder), str(source)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def copy_sources(folder: Path) -> None:
    """Copy what a clone has of the package, without what was built in it; its kernels are compiled in less time."""
    folder.mkdir()
    for name in ("pyproject.toml", "LICENSE", "py.typed", *(file.name for file in ROOT.glob("*.py"))):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    setup = (folder / "setup.py").read_text()
    assert '"-O3"' in setup
    (folder / "setup.py").write_text(setup.replace('"-O3"', '"-O0"'))
    for top in (*SHIPPED, "examples", "docs"):
        left_out = shutil.ignore_patterns("__pycache__", "*.so", "results", "images")
        shutil.copytree(ROOT / top, folder / top, ignore=left_out)


@pytest.mark.slow
def test_the_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    """Files that are only in the repository are missed by nobody who develops."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    shipped = {file.relative_to(ROOT) for top in SHIPPED for file in (ROOT / top).rglob("*.py")}
    there = {file.relative_to(tmp_path / "installed" / "expertflow") for file in tmp_path.rglob("installed/**/*.py")}
    assert shipped <= there
    assert_the_kernels_are_there(wheel, tmp_path / "installed")
    assert_it_runs(tmp_path / "installed")
    assert_it_describes_itself(next((tmp_path / "installed").glob("*.dist-info")) / "METADATA")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_runs_where_only_the_wheel_is(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, far from the repository. Dependencies are those of the tests; the copy of the model
    is the one that is cached."""
    venv.create(tmp_path / "clean", with_pip=False)
    python, site = tmp_path / "clean" / "bin" / "python", next((tmp_path / "clean").glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    words = ["demo", "--count", "2", "--max-new-tokens", "8", "--cache", str(cache_folder())]
    command = [str(python.with_name("expertflow")), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "bit-identical to" in done.stdout and "tokens equal to" in done.stdout
    told = subprocess.run([*command[:1], "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert NOT_BUILT not in told.stdout or shutil.which("cc") is None


def assert_the_kernels_are_there(wheel: Path, installed: Path) -> None:
    """Without them an install from a wheel would be slower, and only `expertflow doctor` would say so."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    assert "-cp311-abi3-" in wheel.name, "one wheel should serve every version of Python"
    assert [file.name for file in (installed / "expertflow" / "workers" / "kernels").glob("_native*")] == [
        "_native.abi3.so"
    ]


def assert_it_runs(installed: Path) -> None:
    """The built-in model and its prompts are there, so `expertflow demo` needs nothing else."""
    code = (
        "import sys; from expertflow import Config, __file__ as place; Config.load('cpu-host'); print(place);"
        "from expertflow.runtime.demo.widened import example_file;"
        "from expertflow.runtime.commands.demo import Demo; print(len(Demo(model='m')._chosen_prompts()));"
        "from expertflow.workers.checkpoint.config_file import read_config;"
        "from expertflow.workers.checkpoint.resolve import local_folder;"
        "print(read_config(local_folder(str(example_file('model'))))['model_type']);"
        "from expertflow.__main__ import main; sys.argv = ['expertflow', 'demo', '--help']; main()"
    )
    clean = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    told = subprocess.run([sys.executable, "-P", "-c", code], env=clean, text=True, capture_output=True, check=True)
    place, prompts, model_type, *explained = told.stdout.splitlines()
    assert place.startswith(str(installed))
    assert (prompts, model_type) == ("8", "qwen3_moe")
    assert any("--kill" in line for line in explained)
    shipped, ours = installed / "expertflow" / "examples" / "model", ROOT / "examples" / "model"
    assert {file.name for file in shipped.iterdir()} == {file.name for file in ours.iterdir()}
    assert (shipped / "model.safetensors").read_bytes() == (ours / "model.safetensors").read_bytes()
    assert (installed / "expertflow" / "py.typed").is_file()
    assert not [*installed.rglob("examples/*.py")], "scripts of the repository have no place in the package"


def assert_it_describes_itself(metadata: Path) -> None:
    """The index shows this page, where a link into the repository leads nowhere."""
    text = metadata.read_text()
    assert "Classifier: Typing :: Typed" in text and "Content-Type: text/markdown" in text
    assert "expertflow demo" in text
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert [link for link in links if not link.startswith("https://")] == []
    addresses = re.findall(r"(?m)^Project-URL: \w+, (.*)$", text)
    assert addresses and all(address.startswith("https://") and "example" not in address for address in addresses)
    assert {f"Provides-Extra: {name}" for name in EXTRAS} <= set(text.splitlines())

"""What a user installs: the wheel holds the package and nothing else, imports without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lit_llada

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that the checkout stays as it is."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "lit_llada", source / "lit_llada", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "tests").mkdir()
    (source / "tests" / "test_nothing.py").touch()
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(out)]
    done = subprocess.run([*pip, str(source)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next(out.glob("lit_llada-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(target)]
    done = subprocess.run([*pip, str(wheel)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


def python(code: str, installed: Path) -> list[str]:
    """The lines that it prints, with the installed package in front, far from the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lit_llada").rglob("*.py")}
    assert modules <= files
    assert "lit_llada/py.typed" in files
    assert {name.split("/")[0] for name in files} == {"lit_llada", f"lit_llada-{lit_llada.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in files)


LOADED = """
import sys
before = set(sys.modules)
{}
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names
print(sys.modules["lit_llada"].__file__)
print(*loaded)
"""


@pytest.mark.parametrize(
    "code",
    ["import lit_llada", *(f"from lit_llada.cli.main import main; main([{word!r}])" for word in ("--help", "fitt"))],
    ids=["import", "help", "mistyped"],
)
def test_only_the_standard_library_is_loaded_for_an_import_and_for_help(installed: Path, code: str) -> None:
    """Torch alone takes seconds."""
    *said, file, loaded = python(LOADED.format(code), installed)
    assert file.startswith(str(installed)) and loaded == "lit_llada"
    if "--help" in code:
        assert "prepare" in "".join(said)


def test_the_console_script_is_the_command_line(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    name = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "lit-llada = lit_llada.cli.main:main" in archive.read(name).decode()


@pytest.mark.parametrize("name", lit_llada.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(lit_llada, name)
    assert name in dir(lit_llada)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Bachbone'"):
        _ = lit_llada.Bachbone


def test_every_public_name_has_a_home() -> None:
    assert set(lit_llada._HOMES) == set(lit_llada.__all__)

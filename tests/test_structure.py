"""Proofs of structure: layers hold for class paths too, every module has its tests, and nothing grows without limit."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

import lit_llada

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lit_llada"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
TREES = {name: ast.parse((PACKAGE / name).read_text()) for name in MODULES}
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

FILE_LINES, FUNCTION_LINES, MEDIAN_LINES, PARAMETERS, WIDE_FUNCTIONS = 260, 60, 8, 8, 5

# Modules without a test of their own name -> the test that covers them, or why there is none.
WITHOUT_NAMESAKE = {
    "__main__.py": "it calls the command line",
    "errors.py": "one exception class",
    "version.py": "one string",
    "backbone/packed.py": "tests/backbone/test_attention.py",
    "callbacks/step_checkpoint.py": "tests/cli/test_training.py",
    "checkpoint/shards.py": "tests/modules/test_resume.py",
    "checkpoint/source.py": "tests/checkpoint/published/test_read.py",
    "cli/calibration_report.py": "tests/cli/test_calibrate.py",
    "cli/checkpoint_options.py": "tests/cli/test_sample.py",
    "cli/prepare.py": "tests/cli/test_training.py",
    "data/base.py": "tests/data/test_text_datamodule.py",
    "data/datamodule.py": "the old place of a class, for checkpoints of version 0.1.0: tests/test_version_0_1_0.py",
    "data/folder.py": "tests/data/test_text_datamodule.py",
    "data/order.py": "tests/data/test_streaming.py",
    "data/ranks.py": "tests/data/test_streaming.py",
    "modules/compatibility.py": "tests/modules/test_net.py",
    "modules/predict.py": "tests/modules/test_sft.py",
    "modules/pretraining.py": "tests/modules/test_resume.py",
    "modules/hyperparameters.py": "tests/modules/test_net.py",
    "objectives/coupling.py": "tests/objectives/test_preference.py",
    "objectives/two_pass.py": "tests/objectives/test_preference.py",
    "prepare/chunks.py": "tests/prepare/test_documents.py",
    "prepare/corpora/stdlib.py": "tests/prepare/test_documents.py",
    "prepare/manifest.py": "tests/prepare/test_documents.py",
    "prepare/reading.py": "tests/prepare/test_documents.py",
    "prepare/record_folder.py": "tests/prepare/test_conversations.py",
    "prepare/record_chunks.py": "tests/prepare/test_conversations.py",
    "prepare/record_sources.py": "tests/prepare/test_conversations.py",
    "prepare/shards.py": "tests/prepare/test_documents.py",
    "text/template_choice.py": "tests/text/test_chat_template.py",
    "training/sharding.py": "tests/modules/test_parallel.py",
    "training/strategies.py": "tests/modules/test_parallel.py",
}

# Files of more than FILE_LINES lines -> why.
LONG_FILES = {"modules/base.py": "one class; a good third of it are its options: their documentation and signature"}

# Public names of more than one room -> why.
SHARED_NAMES = {
    **dict.fromkeys(("calibrate", "consolidate", "evaluate", "sample"), "a verb is named after what it calls"),
    "T": "a type variable",
}

# Signatures that are options: constructors of classes that YAML configures, and functions that a verb stands for.
CONFIGURED = {
    "callbacks/exact_match.py ExactMatch",
    "callbacks/samples.py SampleLogger",
    "data/answer_datamodule.py AnswerDataModule",
    "data/text_datamodule.py DiffusionDataModule",
    "modules/base.py DiffusionModule",
    "modules/pretraining.py PretrainingModule",
    "modules/sft.py SFTModule",
    "modules/vrpo.py VRPOModule",
}
COMMANDS = {
    "evaluation/calibration.py calibrate",
    "evaluation/comparison.py evaluate",
    "prepare/conversations.py prepare_chat",
    "prepare/conversations.py prepare_preference",
    "prepare/documents.py prepare_text",
    "prepare/own_mistakes.py prepare_own_mistakes",
    "sampling/sample.py sample",
}


def floors() -> dict[str, tuple[int, str]]:
    """Room -> (its floor, counted from above; the rooms beside it that it does not know)."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return {room: (floor, line) for floor, line in enumerate(layers) for room in re.split(r"[|:\s]+", line)}


def room_of(module: str) -> str:
    return module.partition("/")[0].removesuffix(".py")


def strings(tree: ast.Module) -> Iterator[str]:
    """The string constants that are no docstrings."""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, holders) and _has_docstring(node)}  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def _has_docstring(node: ast.AST) -> bool:
    return ast.get_docstring(node) is not None  # type: ignore[arg-type]


def upward(module: str, tree: ast.Module) -> list[str]:
    """The class paths in a module's strings that lead to its own floor or above."""
    here, found = floors()[room_of(module)], []
    for text in strings(tree):
        for name in re.findall(r"\blit_llada\.(\w+)", text):
            home = lit_llada._HOMES.get(name, name).partition(".")[0]
            if home != room_of(module) and floors()[home][0] <= here[0]:
                found.append(f"{module} names lit_llada.{name}, which stands in {home}")
    return found


def test_class_paths_point_downwards_as_imports_do() -> None:
    assert [line for module, tree in TREES.items() for line in upward(module, tree)] == []


def test_a_class_path_that_points_upwards_would_be_found() -> None:
    tree = ast.parse('"""lit_llada.cli of a docstring"""\nx = {"class_path": "lit_llada.VRPOModule"}')
    assert upward("data/base.py", tree) == ["data/base.py names lit_llada.VRPOModule, which stands in modules"]
    assert upward("evaluation/result.py", tree) != [] and upward("cli/main.py", tree) == []


def test_every_module_has_a_namesake_test_or_says_where_it_is_tested() -> None:
    def namesake(module: str) -> Path:
        folder, _, name = module.rpartition("/")
        return ROOT / "tests" / folder / f"test_{name}"

    assert [m for m in MODULES if not namesake(m).is_file() and m not in WITHOUT_NAMESAKE] == []
    assert [m for m in WITHOUT_NAMESAKE if m not in MODULES or namesake(m).is_file()] == []
    named = [place for reason in WITHOUT_NAMESAKE.values() for place in re.findall(r"tests/\S+\.py", reason)]
    assert named
    assert [place for place in named if not (ROOT / place).is_file()] == []


def functions() -> Iterator[tuple[str, FunctionNode]]:
    """``module name`` or ``module class`` (of a constructor) of every function, and the function."""
    for module, tree in TREES.items():
        owners = {
            id(child): node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for child in node.body
        }
        for node in ast.walk(tree):
            if isinstance(node, FunctionNode):
                owner = owners.get(id(node), "")
                yield f"{module} {owner if node.name == '__init__' else node.name}", node


def body_lines(node: FunctionNode) -> int:
    """Lines of a function without its signature and its docstring."""
    body = node.body[1:] if _has_docstring(node) else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_no_file_and_no_function_is_too_long() -> None:
    lengths = {module: len((PACKAGE / module).read_text().splitlines()) for module in MODULES}
    assert {module for module, lines in lengths.items() if lines > FILE_LINES} == set(LONG_FILES)
    bodies = {name: body_lines(node) for name, node in functions()}
    assert {name: lines for name, lines in bodies.items() if lines > FUNCTION_LINES} == {}
    assert median(body_lines(node) for _, node in functions()) <= MEDIAN_LINES


def parameters(node: FunctionNode) -> int:
    names = [arg.arg for arg in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_few_functions_have_many_parameters() -> None:
    wide = {name: parameters(node) for name, node in functions() if parameters(node) > PARAMETERS}
    assert set(COMMANDS) <= {name for name, _ in functions()}
    wide = {name: count for name, count in wide.items() if name not in CONFIGURED | COMMANDS}
    assert len(wide) <= WIDE_FUNCTIONS, wide


def public_names() -> dict[str, dict[str, str]]:
    """Public name at the top of a module -> room -> module."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for module, tree in TREES.items():
        for node in tree.body:
            targets: list[ast.expr] = getattr(node, "targets", None) or [getattr(node, "target", None)]  # type: ignore[list-item]
            names = [n.id for target in targets if target for n in ast.walk(target) if isinstance(n, ast.Name)]
            if isinstance(node, FunctionNode | ast.ClassDef):
                names = [node.name]
            for name in names:
                if not name.startswith("_"):
                    found[name][room_of(module)] = module
    return found


def test_no_two_public_things_of_different_rooms_have_one_name() -> None:
    twice = {name: sorted(homes.values()) for name, homes in public_names().items() if len(homes) > 1}
    assert {name: homes for name, homes in twice.items() if name not in SHARED_NAMES} == {}
    assert [name for name in SHARED_NAMES if name not in twice] == []


@pytest.mark.parametrize("name", sorted(set(lit_llada._HOMES.values())))
def test_the_home_of_a_public_name_is_a_module(name: str) -> None:
    assert f"{name.replace('.', '/')}.py" in MODULES

"""Docstrings: every public name has one, in plain sentences, with its arguments and errors. Nothing is imported."""

import ast
import builtins
import re
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from reference_data import ROOT

PACKAGE = ROOT / "dpt_zoo"
PUBLIC = {"Detector", "Detections", "Client", "create_model", "train", "evaluate", "export", "list_models"}
PUBLIC |= {"get_model_info", "detect_dataset", "RayDetector"}
"""The public API, `dpt_zoo.__all__`."""

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Documented: TypeAlias = ast.Module | ast.ClassDef | Function

OVERRIDDEN = {
    "forward",  # torch.nn.Module
    "train",
    "state_dict",
    "load_state_dict",
    "init_weights",  # mmengine.model.BaseModule
    "run",  # mmengine.runner.BaseLoop
    "process",  # mmengine.evaluator.BaseMetric
    "compute_metrics",
    "emit",  # logging.Handler
    "do_GET",  # http.server
    *(f"{when}_{what}" for when in ("before", "after") for what in ("run", "train", "train_epoch", "train_iter")),
    *(f"{when}_{what}" for when in ("before", "after") for what in ("val", "val_epoch", "val_iter")),
    *(f"{when}_{what}" for when in ("before", "after") for what in ("test", "test_epoch", "test_iter")),
    "before_save_checkpoint",
    "after_load_checkpoint",
    "put",  # mmengine.fileio.BaseStorageBackend
    "forward_features",  # timm's models
    "forward_head",
    "forward_intermediates",
    "prune_intermediate_layers",
    "get_classifier",
    "reset_classifier",
    "group_matcher",
    "no_weight_decay",
    "set_grad_checkpointing",
}
"""Methods that a library's base class documents."""

CONVENTIONAL = {"args", "kwargs", "cfg", "runner", "model", "weights", "record", "path", "folder", "progress"}
CONVENTIONAL |= {"device", "dtype", "shape", "x"}
"""Parameters that mean the same everywhere in the package."""

DECORATED = {"overload", "setter", "override"}
"""Decorators of functions that another docstring covers."""


class Item(NamedTuple):
    """A public name of the package."""

    name: str
    node: Documented
    owner: ast.ClassDef | None = None

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.node) or ""


def public_items() -> Iterator[Item]:
    """Every public module, class, function and method of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "_data" in path.parts:
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        yield Item(module, tree)
        yield from public_members(module, tree)


def public_members(prefix: str, parent: ast.Module | ast.ClassDef) -> Iterator[Item]:
    """The public classes, functions and methods defined in a module or class; not those within functions."""
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        name, owner = f"{prefix}.{node.name}", parent if isinstance(parent, ast.ClassDef) else None
        if isinstance(node, ast.ClassDef):
            yield Item(name, node)
            yield from public_members(name, node)
        elif not is_exempt(node, owner):
            yield Item(name, node, owner)


def is_exempt(node: Function, owner: ast.ClassDef | None) -> bool:
    """Whether another docstring covers the function: that of a library's base class, or of its main overload."""
    names = {
        re.sub(r"\(.*", "", ast.unparse(decorator), flags=re.S).split(".")[-1] for decorator in node.decorator_list
    }
    return bool(names & DECORATED) or (owner is not None and bool(owner.bases) and node.name in OVERRIDDEN)


def parameters(node: Function, is_method: bool) -> list[str]:
    """The names of a function's parameters, without `self`, `cls` and those that begin with an underscore."""
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args]
    if is_method and "staticmethod" not in {ast.unparse(decorator) for decorator in node.decorator_list}:
        named = named[1:]
    rest = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    return [a.arg for a in (*named, *arguments.kwonlyargs, *rest) if not a.arg.startswith("_")]


def section(docstring: str, title: str) -> dict[str, str]:
    """The entries of a section of a Google-style docstring: `{name: text}`."""
    match = re.search(rf"^{title}:\n((?:[ ]+.*\n|\n)*)", docstring + "\n", re.MULTILINE)
    body = match.group(1) if match else ""
    entries = re.findall(r"^    \*{0,2}(\w+)(?: \([^)]*\))?: (.*(?:\n     .*)*)", body, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in entries}


def test_every_public_name_has_a_docstring() -> None:
    assert [item.name for item in public_items() if not item.docstring] == []


def test_the_first_line_is_a_sentence() -> None:
    sentence = re.compile(r"[A-Z`\"0-9].*\.$")
    lines = {item.name: item.docstring.splitlines()[0] for item in public_items() if item.docstring}
    assert {name: line for name, line in lines.items() if not sentence.match(line)} == {}


def test_arguments_are_documented() -> None:
    """Functions with two or more parameters name each of them.

    Those of the public API do so in an `Args` section. Others may name a parameter, as code, in the text, and leave out
    conventional ones. The class's docstring may document the constructor.
    """
    missing = {}
    for item in public_items():
        if isinstance(item.node, ast.Module):
            continue
        node, docstring = item.node, item.docstring
        if isinstance(node, ast.ClassDef):
            functions = (child for child in node.body if isinstance(child, ast.FunctionDef))
            constructor = next((function for function in functions if function.name == "__init__"), None)
            if constructor is None:
                continue
            node, docstring = constructor, f"{docstring}\n\n{ast.get_docstring(constructor) or ''}"
        names = set(parameters(node, item.owner is not None or isinstance(item.node, ast.ClassDef)))
        documented = set(section(docstring, "Args"))
        wrong = documented - names
        path = set(item.name.split("."))
        is_public_api = bool(PUBLIC & path) and not path & {"cli", "torch_hub"}
        needed = names if is_public_api else names - CONVENTIONAL
        if documented or len(needed) > 1:
            code = " ".join(re.findall(r"`[^`]+`", docstring))
            wrong |= needed - documented - (set() if is_public_api else set(re.findall(r"\w+", code)))
        if wrong:
            missing[item.name] = sorted(wrong)
    assert missing == {}


def test_documented_errors_exist() -> None:
    """`Raises` sections name exceptions of the package or Python's own, each with a sentence."""
    known = {item.name.rpartition(".")[2] for item in public_items() if isinstance(item.node, ast.ClassDef)}
    known |= {"UnpicklingError"}  # pickle's, which torch.load raises
    known |= {name for name, value in vars(builtins).items() if isinstance(value, type)}
    wrong = {}
    for item in public_items():
        entries = section(item.docstring, "Raises")
        bad = [name for name, text in entries.items() if name not in known or not re.match(r"[A-Z`\"0-9].*\.$", text)]
        if bad or (re.search(r"^Raises:", item.docstring, re.MULTILINE) and not entries):
            wrong[item.name] = bad
    assert wrong == {}

"""Signatures as a reader needs them: type aliases, constants and literals of this package are written out.

`update: Update | Literal["descent", "closed-form"]` becomes `update: Update | "descent" | "closed-form"`, and
`shared: Shared` the union that it stands for. A griffe extension, named in `mkdocs.yml`.
"""

import copy
import dataclasses
from typing import Any

import griffe


class PlainTypes(griffe.Extension):
    """Replaces the names of aliases and constants in every annotation and default."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Called by griffe when the whole package is read."""
        if pkg.name == "gradnorm":
            self._write_out(pkg, pkg)

    def _write_out(self, item: griffe.Object, package: griffe.Module) -> None:
        if isinstance(item, griffe.Function):
            item.returns = plain(item.returns, package)
            for parameter in item.parameters:
                parameter.annotation = plain(parameter.annotation, package)
                parameter.default = plain(parameter.default, package)
        elif isinstance(item, griffe.Attribute):
            item.annotation = plain(item.annotation, package)
        for member in list(item.members.values()):
            if isinstance(member, griffe.Object):
                self._write_out(member, package)


def plain(found: Any, package: griffe.Module) -> Any:
    """The same expression without names that stand for a type or a number of this package."""
    if isinstance(found, griffe.ExprName):
        value = _value_of(found, package)
        return found if value is None else plain(value, package)
    if isinstance(found, griffe.ExprSubscript) and str(found.left) == "Literal":
        options = found.slice.elements if isinstance(found.slice, griffe.ExprTuple) else [found.slice]
        return _union([str(option).replace("'", '"') for option in options])
    if isinstance(found, griffe.ExprBinOp) and found.operator == "|":
        return _union([*_options(plain(found.left, package)), *_options(plain(found.right, package))])
    if isinstance(found, griffe.Expr):
        written = copy.copy(found)
        for field in dataclasses.fields(found):
            if field.name != "parent":
                setattr(written, field.name, plain(getattr(found, field.name), package))
        return written
    return [plain(each, package) for each in found] if isinstance(found, list) else found


def _value_of(name: griffe.ExprName, package: griffe.Module) -> Any:
    """What an alias or a constant stands for; `None` for classes, functions and names of other packages."""
    path = name.canonical_path
    if not path.startswith(f"{package.name}."):
        return None
    try:
        target = package.modules_collection[path]
        target = target.final_target if isinstance(target, griffe.Alias) else target
    except (KeyError, griffe.AliasResolutionError):
        return None
    return target.value if isinstance(target, griffe.Attribute) and isinstance(target.parent, griffe.Module) else None


def _options(union: Any) -> list[Any]:
    """`a | b | c` → a, b, c."""
    if isinstance(union, griffe.ExprBinOp) and union.operator == "|":
        return [*_options(union.left), *_options(union.right)]
    return [union]


def _union(options: list[Any]) -> Any:
    """A, b, c → `a | b | c`, each once."""
    *others, last = {str(option): option for option in options}.values()
    return griffe.ExprBinOp(left=_union(others), operator="|", right=last) if others else last

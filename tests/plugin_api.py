"""The surface that plugins build on, read from the source, and the kit's checks.

``python -m tests.plugin_api`` prints both as docs/plugin-api.md holds them.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

SURFACE: dict[str, tuple[str, ...]] = {
    "core/__init__.py": ("API_VERSION", "hookimpl"),
    "core/hookspecs.py": (),
    "core/part.py": ("Part",),
    "core/logits.py": ("LogitView", "DenseLogits"),
    "core/subset.py": ("Subset", "listed", "WholeVocabulary", "SubsetQ", "ActionSubset"),
    "core/prefixes.py": ("prefixes", "reaching", "entropy"),
    "core/transitions.py": ("TERMINAL", "UNKNOWN", "Transitions"),
    "core/objective.py": ("TAKEN", "Moments", "TDBatch", "term", "watched", "TargetUpdate", "LossTerms", "Objective"),
    "core/returns.py": ("accumulated", "PolicyGradient"),
    "core/temporal.py": ("TemporalDifference", "FixedTarget"),
    "core/divergence.py": ("NEVER", "kl", "relative_entropy", "DivergenceTerms", "Divergence"),
    "core/extraction.py": ("Decoding", "PolicyExtraction"),
    "core/trajectories.py": (
        "Completion", "PromptRow", "Trajectory", "Sampler", "MixedSampler", "Sources", "TrajectorySource",
        "OnPolicySource",
    ),
    "core/metric.py": ("PositionBin", "TokenValues", "Evaluated", "Metric"),
    "core/suite.py": ("Suite",),
    "core/recipe.py": ("Recipe",),
    "core/errors.py": ("UserError",),
    "core/checks/check.py": ("CheckFailed", "RecipeFile", "Outcome"),
    "core/checks/run.py": (
        "check_subset", "check_objective", "check_extraction", "check_trajectories", "check_metric", "check_recipe",
        "parametrize_with_checks",
    ),
}  # fmt: skip
"""Names of each module that a plugin may import; all public functions where none is named."""


SHOWN = ("__init__", "__call__")


def surface() -> str:
    """Every public name with its fields, methods and signatures."""
    lines = []
    for file, names in SURFACE.items():
        tree = ast.parse((ROOT / file).read_text())
        module = "distillzoo." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        module = re.sub(r"(\.checks)\..*", r"\1", module)  # which exports what its files define
        if module not in lines:
            lines.append(module)
        for node in tree.body:
            name = _name(node)
            if name.startswith("_") or (
                name not in names if names else not isinstance(node, ast.FunctionDef | ast.ClassDef)
            ):
                continue
            lines += ["  " + line for line in _described(node)]
    return "\n".join(lines) + "\n"


def _name(node: ast.stmt) -> str:
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.target)
    return getattr(node, "name", "_")


def _described(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(b) for b in node.bases)
        inner = [part for part in node.body if not _name(part).startswith("_") or _name(part) in SHOWN]
        return [f"{node.name}({bases})" if bases else node.name, *("  " + t for p in inner for t in _described(p))]
    if isinstance(node, ast.FunctionDef):
        kinds = {ast.unparse(d).split("(")[0] for d in node.decorator_list} & {
            "property",
            "classmethod",
            "abstractmethod",
        }
        kinds |= {"property"} if any("cached_property" in ast.unparse(d) for d in node.decorator_list) else set()
        marks = f"  [{', '.join(sorted(kinds))}]" if kinds else ""
        result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return [f"{node.name}({ast.unparse(node.args)}){result}{marks}"]
    if isinstance(node, ast.AnnAssign):
        return [f"{ast.unparse(node.target)}: {ast.unparse(node.annotation)}"]
    return []


def checks() -> str:
    """The table of all checks, by kind."""
    from distillzoo.core.checks import CHECKS

    rows = [f"| {c.kind} | `{c.name}` | {c.rule} |" for c in sorted(CHECKS, key=lambda c: c.kind)]
    return "\n".join(["| kind | check | rule |", "|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    print(surface())  # noqa: T201
    print(checks(), end="")  # noqa: T201

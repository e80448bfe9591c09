"""A report of the size guides of the design; only gross overshoots fail.

Run `pytest tests/test_sizes.py -s` to read it.
"""

import ast
import statistics
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "pixelwise"
FILE_GUIDE, FILE_LIMIT = 450, 600
FUNCTION_MEDIAN, FUNCTION_P90 = 20, 45


def function_lengths(tree: ast.Module) -> list[tuple[str, int]]:
    """Lines of code of every function, its docstring not counted."""
    lengths: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            doc = 0
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                doc = (first.end_lineno or 0) - first.lineno + 1
            lengths.append((node.name, (node.end_lineno or 0) - node.lineno + 1 - doc))
    return lengths


def test_report_sizes() -> None:
    files: dict[str, int] = {}
    functions: list[tuple[str, int]] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        name = str(path.relative_to(PACKAGE))
        files[name] = text.count("\n")
        functions += [(f"{name}:{f}", n) for f, n in function_lengths(ast.parse(text))]
    lengths = sorted(n for _, n in functions)
    p90 = lengths[int(0.9 * len(lengths))]
    print(f"\n{len(files)} files, median {statistics.median(files.values()):.0f} lines")
    print(f"{len(lengths)} functions, median {statistics.median(lengths):.0f}, p90 {p90}")
    for name, lines in sorted(files.items(), key=lambda item: -item[1]):
        if lines > FILE_GUIDE:
            print(f"  over {FILE_GUIDE} lines: {name} ({lines})")
    for name, lines in sorted(functions, key=lambda item: -item[1])[:8]:
        print(f"  long function: {name} ({lines})")
    assert statistics.median(lengths) <= FUNCTION_MEDIAN
    assert p90 <= FUNCTION_P90
    assert max(files.values()) <= FILE_LIMIT, max(files, key=files.__getitem__)

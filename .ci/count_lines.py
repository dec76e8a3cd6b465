"""Lines of code (no blanks, comments, docstrings) of the package, and the bounds that they keep."""

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1] / "imgstore"
CORE = ["__init__.py", "errors.py", "formats.py", "disk.py", "lmdb.py", "hdf5.py", "core", "_disk", "_lmdb", "_hdf5"]
NOTHING = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
MOST_CORE, MOST = 2450, 3950


def code_lines(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in NOTHING
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(lines)


def counted(names: list[str]) -> int:
    paths = (
        path for name in names for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
    )
    return sum(code_lines(path) for path in paths if "tests" not in path.relative_to(ROOT).parts)


def main() -> None:
    core, package = (
        counted(CORE),
        counted([path.name for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"]),
    )
    print(f"lines of code: core {core} of {MOST_CORE}, package {package} of {MOST}")
    sys.exit(core > MOST_CORE or package > MOST)


if __name__ == "__main__":
    main()

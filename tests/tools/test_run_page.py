"""``tools/run_page.py`` runs the code of a page, and notices everything that a reader would."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from scripts import load_script

PAGE = """# A page

```bash
make demo   # needs a clone
echo one > written.txt   # a comment
echo two \\
    >> written.txt
```

1. In a list:

   ```python
   lines = open("written.txt").read().split()
   print(lines)  # -> ['one', 'two']
   ```

```text
never(run)
```

```python
print(len(lines))  # -> 2
```
"""


@pytest.fixture(scope="module")
def tool() -> Any:
    return load_script("tools/run_page.py")


@pytest.fixture
def run(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a page with this text."""
    monkeypatch.chdir(tmp_path)

    def run(text: str) -> None:
        path = tmp_path / "page.md"
        path.write_text(text, encoding="utf-8")
        tool.run_page(path)

    return run


def test_blocks_run_in_order(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(PAGE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  not run, needs a clone: make demo"
    assert [line.split("s  ")[1] for line in lines[1:]] == [
        "echo one > written.txt",
        "echo two      >> written.txt",
        "the block at line 13",
        "the block at line 22",
    ]


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("-> 2", "-> 3", r"page.md, block at line 22: expected:\n3\nprinted:\n2"),
        ("echo one", "echo missing; false", r"exit code 1 of: echo missing; false > written.txt"),
        (
            "print(len(lines))",
            "import warnings, tomecore.errors as e; warnings.warn('r is cut', e.ClampWarning); print(2)",
            r"block at line 22 warns: r is cut",
        ),
    ],
)
def test_a_fault_of_a_page_is_noticed(
    tool: Any, run: Any, right: str, wrong: str, message: str
) -> None:
    assert PAGE.count(right) == 1
    with pytest.raises(tool.PageError, match=message):
        run(PAGE.replace(right, wrong))


def test_a_traceback_has_the_lines_of_the_page(run: Any) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        run(PAGE.replace("print(len(lines))", "1 / 0"))
    assert raised.traceback[-1].lineno == 21  # counted from 0


def test_the_wheel_is_installed_as_tomecore(tool: Any) -> None:
    wheel = Path("/wheels/tomecore-1-py3-none-any.whl")
    place = "file:///wheels/tomecore-1-py3-none-any.whl"
    for command, expected in {
        'pip install ".[torch,cli]" timm': f'pip install "tomecore[torch,cli] @ {place}" timm',
        'pip install "."': f'pip install "tomecore @ {place}"',
        'pip install "tomecore[cli]"': f'pip install "tomecore[cli] @ {place}"',
        'pip install "tomecore @ git+https://a.example/b"': f'pip install "tomecore @ {place}"',
        "pip install --no-deps paddleclas": "pip install --no-deps paddleclas",
        'tomecore plan --r ".[torch]"': 'tomecore plan --r ".[torch]"',
    }.items():
        assert tool.with_wheel(command, wheel) == expected


def test_the_tree_is_not_the_wheel(
    tool: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(tool.PageError, match="tomecore is imported from"):
        tool.check_origin()

"""The shell blocks of a Markdown file: what a reader is told to type, for a test to try.

    python scripts/readme_commands.py [README.md] [--json]

A block is run unless the line above it is an HTML comment that says why not:

    <!-- not run: needs a GPU -->
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"```(\w*)")
MARK = re.compile(r"<!-- not run: (.+) -->")


@dataclass
class Block:
    line: int  # of its first command, from 1
    text: str
    not_run: str = ""  # why


def find_blocks(markdown: str) -> Iterator[Block]:
    block, language, mark = None, "", ""
    for number, line in enumerate(markdown.splitlines(), 1):
        fence = FENCE.fullmatch(line.strip())
        if fence and block is None:
            block, language = Block(number + 1, "", mark), fence[1]
        elif fence:
            if language in ("bash", "sh", "shell"):
                yield block
            block, mark = None, ""
        elif block is not None:
            block.text += line + "\n"
        elif line.strip():
            found = MARK.fullmatch(line.strip())
            mark = found[1] if found else ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).parent.parent / "README.md")
    parser.add_argument("--json", action="store_true", help="one object a line: line, text, not_run")
    options = parser.parse_args()
    for block in find_blocks(options.file.read_text()):
        if options.json:
            print(json.dumps(dataclasses.asdict(block)))
        else:
            note = f", not run: {block.not_run}" if block.not_run else ""
            print(f"# {options.file.name}:{block.line}{note}\n{block.text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""List the shell blocks of a Markdown file, so that a test can run what the reader is asked to type.

    python scripts/readme_commands.py [README.md] [--json]

The test runs a block unless the line above it is an HTML comment with a reason:

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
    line: int  # number of its first line, counted from 1
    text: str
    not_run: str = ""  # the reason, or empty


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
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per block: line, text, not_run"
    )
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

"""Convert ImageNet, or any image classification data, into an LMDB store.

    python folder2lmdb.py --dataset /imagenet/train -o train-lmdb/

This is `imagelmdb convert` for a checkout that is not installed. The same from Python, and the store as a
dataset in place of torchvision's ImageFolder:

    from imagelmdb import convert
    convert("/imagenet/train", "train-lmdb/")

    from folder2lmdb import ImageFolderLMDB
    dataset = ImageFolderLMDB("train-lmdb/", transform)

A conversion has four steps. imagelmdb/store/sources finds out what the data is and lists its images.
store/encode.py turns each image into a record; a JPEG keeps its bytes and gets an index of its tiles.
store/writer.py writes the records, many per transaction, and a journal that lets a killed run continue. At
the end, store/convert.py writes the facts about the whole store and a digest of its records.
"""

from __future__ import annotations

import sys
from typing import Any

from imagelmdb.__main__ import add_convert_options, run_convert
from imagelmdb.command_line import Parser
from imagelmdb.errors import run_command


def __getattr__(name: str) -> Any:
    if name == "ImageFolderLMDB":  # imported on first use, because a conversion needs no torch
        from imagelmdb import ImageFolderLMDB

        return ImageFolderLMDB
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> int:
    return run_convert(make_parser().parse_args())


def make_parser() -> Parser:
    parser = Parser(prog="python folder2lmdb.py")
    add_convert_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))

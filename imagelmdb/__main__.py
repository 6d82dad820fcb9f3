"""python -m imagelmdb info | verify | view | export | bench: look at a store, check it, take it apart."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from imagelmdb.command_line import Parser
from imagelmdb.errors import UserError, run_command
from imagelmdb.store.export import export
from imagelmdb.store.info import describe
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.sheet import draw_sheet
from imagelmdb.store.verify import QUICK_RECORDS, verify


def main() -> int:
    options = parse_options()
    return options.command(options)


def parse_options() -> argparse.Namespace:
    parser = Parser(prog="python -m imagelmdb", description="Look at a store and check it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="count, classes, bytes, encoding, shards, digest")
    info.add_argument("store", help="a directory, a file, or a folder of shards")
    info.add_argument("--json", action="store_true", help="as one JSON object")
    info.set_defaults(command=run_info)

    check = commands.add_parser("verify", help="check every byte, decode every record; exit 1 if any is bad")
    check.add_argument("store")
    check.add_argument("--quick", action="store_true", help="the structure, and a thousand records")
    check.add_argument("--workers", type=int, help="threads (default: one a core)")
    check.set_defaults(command=run_verify)

    view = commands.add_parser("view", help="draw a contact sheet with labels")
    view.add_argument("store")
    view.add_argument("-o", "--output", default="sheet.png", help="the picture to write (default: sheet.png)")
    view.add_argument("--index", type=int, nargs="+", help="the records to show (default: an even spread)")
    view.set_defaults(command=run_view)

    out = commands.add_parser("export", help="write the images back to class folders")
    out.add_argument("store")
    out.add_argument("-o", "--output", required=True, help="the folder to write")
    out.set_defaults(command=run_export)

    bench = commands.add_parser("bench", help="time ImageFolder against its store, side by side")
    bench.add_argument("--folder", required=True, help="the folder of class folders")
    bench.add_argument("--lmdb", required=True, metavar="STORE", help="the store made from it")
    bench.add_argument("--epochs", type=int, default=3)
    bench.add_argument("--train", action="store_true", help="train a ResNet-18 on the batches as well")
    bench.add_argument("--batch-size", type=int, default=64)
    bench.add_argument("--size", type=int, default=224, help="px (default: 224)")
    bench.add_argument("--workers", type=int, default=2, help="processes of each loader (default: 2)")
    bench.add_argument("-o", "--output", default="bench.svg", help="the chart to write (default: bench.svg)")
    bench.set_defaults(command=run_bench)
    return parser.parse_args()


def run_info(options: argparse.Namespace) -> int:
    facts = describe(LMDBStore(options.store))
    if options.json:
        print(json.dumps(facts))
    else:
        if classes := facts.pop("classes", None):
            facts["classes"] = (
                f"{len(classes)}: {', '.join(classes[:4])}{', ...' if len(classes) > 4 else ''}"
            )
        for name, value in facts.items():
            print(f"{name:12} {value}")
    return 0


def run_verify(options: argparse.Namespace) -> int:
    problems = verify(options.store, quick=options.quick, workers=options.workers, progress=True)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{options.store}: problems: {len(problems)}", file=sys.stderr)
        return 1
    count = len(LMDBStore(options.store))
    checked = f"{QUICK_RECORDS} of {count}" if options.quick and count > QUICK_RECORDS else f"all {count}"
    print(f"{options.store}: {checked} records are well")
    return 0


def run_view(options: argparse.Namespace) -> int:
    sheet = draw_sheet(LMDBStore(options.store), options.index)
    try:
        sheet.save(options.output)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {options.output}: {error}") from error
    print(options.output)
    return 0


def run_export(options: argparse.Namespace) -> int:
    count = export(LMDBStore(options.store), options.output, progress=True)
    print(f"{Path(options.output)}: {count} images")
    return 0


def run_bench(options: argparse.Namespace) -> int:
    from imagelmdb.bench import compare, draw_chart, print_timings  # the only command that needs torch

    if options.epochs < 1:
        raise UserError(f"--epochs {options.epochs}: at least 1")
    timings = compare(
        options.folder,
        options.lmdb,
        epochs=options.epochs,
        train=options.train,
        batch_size=options.batch_size,
        size=options.size,
        workers=options.workers,
    )
    print_timings(timings)
    draw_chart(timings, options.output)
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

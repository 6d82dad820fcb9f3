"""The `imagelmdb` command: make a store, look at it, check it, take it apart.

    imagelmdb convert --dataset /imagenet/train -o train-lmdb/
    imagelmdb info train-lmdb/

`python -m imagelmdb` is the same. Each command imports what it needs when it runs, so that --help and a
mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from imagelmdb.command_line import Parser
from imagelmdb.errors import EXIT_DAMAGED, EXIT_UNFINISHED, UserError, run_command

if TYPE_CHECKING:
    from imagelmdb.store.convert import Report

CONVERT_EXAMPLES = """\
examples:
  %(prog)s --dataset /imagenet/train -o train-lmdb/
  %(prog)s --dataset ILSVRC2012_img_train.tar -o train-lmdb/
  %(prog)s --dataset ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12.tar.gz -o val-lmdb/
  %(prog)s -f ~/data/cats_vs_dogs -s train             # writes ~/data/cats_vs_dogs/train.lmdb
  %(prog)s --from_dir SRC --to_dir DST --split train   # writes DST/train.lmdb
  %(prog)s --dataset old.lmdb -o new.lmdb              # from a store of an older tool

If STORE ends in .lmdb, it is written as one file, otherwise as a directory. If a conversion was interrupted
or killed, or the disk was full, run the same command again: it continues where it stopped.

exit codes: 0 finished; 2 wrong use, or no image at all; 3 unfinished, because some files are not images (they
are listed in errors.jsonl; --skip-bad finishes without them); 4 disk full
"""


def main() -> int:
    return run_command(run)


def run() -> int:
    parser = make_parser()
    options = parser.parse_args()
    if not options.run:
        parser.print_help()  # to ask what there is, is no mistake: 0, like pip, docker and cargo
        return 0
    return options.run(options)


def make_parser() -> Parser:
    as_module = Path(sys.argv[0]).name == "__main__.py"
    parser = Parser(
        prog="python -m imagelmdb" if as_module else "imagelmdb",
        description="Make an LMDB store of images, look at it, check it, take it apart.",
        epilog="`%(prog)s COMMAND --help` lists a command's options.",
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    description = "Convert image classification data into an LMDB store."
    convert = commands.add_parser(
        "convert",
        help="convert images into a store",
        description=description,
        epilog=CONVERT_EXAMPLES,
    )
    add_convert_options(convert)
    convert.set_defaults(run=run_convert)

    info = commands.add_parser("info", help="show count, classes, bytes, encoding, shards, digest")
    info.add_argument("store", metavar="STORE", help="a directory, a file, or a folder of shards")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    info.set_defaults(run=run_info)

    verify = commands.add_parser(
        "verify", help="check every byte and decode every record; exit code 1 if any is damaged"
    )
    verify.add_argument("store", metavar="STORE")
    verify.add_argument("--quick", action="store_true", help="check the structure and 1000 records only")
    verify.add_argument("--workers", type=int, metavar="N", help="threads (default: one per core)")
    verify.set_defaults(run=run_verify)

    view = commands.add_parser("view", help="draw a contact sheet with labels")
    view.add_argument("store", metavar="STORE")
    view.add_argument(
        "-o", "--output", default="sheet.png", metavar="FILE", help="the picture (default: sheet.png)"
    )
    view.add_argument(
        "--index", type=int, nargs="+", metavar="N", help="records to show (default: 40, evenly spread)"
    )
    view.set_defaults(run=run_view)

    export = commands.add_parser("export", help="write the images back to class folders")
    export.add_argument("store", metavar="STORE")
    export.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the folder to write")
    export.set_defaults(run=run_export)

    bench = commands.add_parser("bench", help="time a folder of images against its store, side by side")
    bench.add_argument("--folder", required=True, metavar="FOLDER", help="the folder of class folders")
    bench.add_argument("--lmdb", required=True, metavar="STORE", help="the store made from it")
    bench.add_argument("--epochs", type=int, default=3, metavar="N", help="epochs of each (default: 3)")
    bench.add_argument("--train", action="store_true", help="train a ResNet-18 on the batches as well")
    bench.add_argument("--batch-size", type=int, default=64, metavar="N", help="images (default: 64)")
    bench.add_argument("--size", type=int, default=224, metavar="PX", help="of the crops (default: 224)")
    bench.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes of each loader (default: 2)"
    )
    bench.add_argument(
        "-o", "--output", default="bench.svg", metavar="FILE", help="the chart (default: bench.svg)"
    )
    bench.set_defaults(run=run_bench)
    return parser


def add_convert_options(parser: Parser) -> None:
    """The options of `imagelmdb convert` and of folder2lmdb.py."""
    add = parser.add_argument
    group = "what to convert, and where to (either --dataset and -o, or -f and -s)"
    add(
        "--dataset",
        group=group,
        metavar="PATH",
        help="a folder of class folders, an official ImageNet tar, a list file with a line `path label` per "
        "image, WebDataset shards, parquet files, or another store",
    )
    add("-o", "--output", group=group, metavar="STORE", help="the store to write")
    add("-f", "--folder", "--from-dir", group=group, metavar="ROOT", help="the folder that has the split")
    add("-s", "--split", group=group, metavar="NAME", help="convert ROOT/NAME into NAME.lmdb")
    add("--to-dir", group=group, metavar="DIR", help="the folder for NAME.lmdb (default: ROOT)")
    add(
        "--devkit",
        group=group,
        metavar="TAR",
        help="ILSVRC2012_devkit_t12.tar.gz, which has the labels of ImageNet's validation images",
    )

    group = "how images are stored (default: JPEG, losslessly tiled)"
    add(
        "--encoding",
        "--save-as",
        group=group,
        choices=("jpeg", "raw", "numpy"),
        help="jpeg; or raw pixels, about 5 times the size and fastest to read (numpy means raw). "
        "Default: jpeg, but raw if the source is a store of raw pixels",
    )
    add("--max-size", group=group, type=int, metavar="PX", help="shrink images to this longest side")
    add("--quality", group=group, type=int, metavar="Q", help="re-encode all images as JPEGs of this quality")
    add(
        "--no-tile",
        group=group,
        action="store_true",
        help="keep each file's bytes as they are, and check only its headers and its end",
    )
    add("--shards", group=group, type=int, default=1, metavar="N", help="write a directory of N LMDBs")
    add("--shuffle", group=group, action="store_true", help="mix the classes on disk")
    add("--seed", group=group, type=int, default=0, metavar="N", help="seed of --shuffle (default: 0)")

    group = "the run"
    add(
        "-p",
        "--workers",
        "--procs",
        group=group,
        type=int,
        metavar="N",
        help="threads (default: one per core)",
    )
    add("--skip-bad", group=group, action="store_true", help="leave out the files that are not images")
    add("--force", group=group, action="store_true", help="replace an existing store")


def run_convert(options: argparse.Namespace) -> int:
    dataset, output = choose_paths(options)

    from imagelmdb.store.convert import convert
    from imagelmdb.store.encode import Encoding
    from imagelmdb.store.sources import open_source

    if sys.stderr and sys.stderr.isatty():  # it takes half a minute for ImageNet's tars
        print(f"listing {dataset} ...", file=sys.stderr)
    source = open_source(dataset, devkit=options.devkit)
    encoding = options.encoding or source.encoding
    report = convert(
        source,
        output,
        how=Encoding(
            "raw" if encoding == "numpy" else encoding, not options.no_tile, options.max_size, options.quality
        ),
        workers=options.workers,
        shards=options.shards,
        shuffle=options.shuffle,
        seed=options.seed,
        skip_bad=options.skip_bad,
        force=options.force,
        progress=True,
    )
    print_summary(report)
    return 0 if report.complete else EXIT_UNFINISHED


def choose_paths(options: argparse.Namespace) -> tuple[Path, str]:
    """(dataset, output) from either form of the command line."""
    if options.dataset and not options.folder:
        if not options.output:
            raise UserError("say where the store goes: -o STORE")
        if options.split or options.to_dir:
            raise UserError("-s and --to_dir go with -f; leave them out with --dataset")
        return Path(options.dataset).expanduser(), options.output
    if options.folder and not options.dataset:
        if not options.split:
            raise UserError("say which folder below -f to convert: -s train")
        root, split = Path(options.folder).expanduser(), Path(options.split)
        if len(split.parts) != 1:
            raise UserError(f"-s {options.split}: give the name of one folder below -f")
        return root / split, options.output or str(Path(options.to_dir or root) / f"{split}.lmdb")
    raise UserError("say what to convert: --dataset PATH -o STORE, or -f ROOT -s SPLIT")


def print_summary(report: Report) -> None:
    rate = report.converted / max(report.seconds, 1e-9)
    done = f"{report.converted} images in {report.seconds:.1f} s ({rate:.0f} images/s)"
    if report.complete:
        print(f"{report.path}: {report.count} images, {report.store_bytes / 1e6:.1f} MB; {done}")
        print(f"digest {report.digest}")
    else:
        print(f"{report.path}: {done}")
    names: dict[str, list[str]] = {}  # by the reason why
    for name, reason in report.reencoded:
        names.setdefault(reason, []).append(name)
    for reason, some in sorted(names.items(), key=lambda item: -len(item[1])):
        more = ", ..." if len(some) > 5 else ""
        print(f"re-encoded {len(some)}, {reason}: {', '.join(some[:5])}{more}")
    if report.bad:
        print(f"not images: {len(report.bad)}, all listed in {report.errors_file}:", file=sys.stderr)
        for item in report.bad[:10]:
            print(f"  {item.name}: {item.reason}", file=sys.stderr)
    if not report.complete:
        print(
            "The store is unfinished: repair these files and run the same command again, or add --skip-bad.",
            file=sys.stderr,
        )


def run_info(options: argparse.Namespace) -> int:
    import json

    from imagelmdb.store.reader import LMDBStore

    facts = LMDBStore(options.store).describe()
    if options.json:
        print(json.dumps(facts))
        return 0
    if classes := facts.pop("classes", None):
        facts["classes"] = f"{len(classes)}: {', '.join(classes[:4])}{', ...' if len(classes) > 4 else ''}"
    for name, value in facts.items():
        print(f"{name:12} {value}")
    return 0


def run_verify(options: argparse.Namespace) -> int:
    from imagelmdb.store.reader import LMDBStore
    from imagelmdb.store.verify import QUICK_RECORDS, verify

    problems = verify(options.store, quick=options.quick, workers=options.workers, progress=True)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{options.store}: {len(problems)} problems", file=sys.stderr)
        return EXIT_DAMAGED
    count = len(LMDBStore(options.store))
    if options.quick and count > QUICK_RECORDS:
        print(f"{options.store}: {QUICK_RECORDS} of {count} records checked, all intact")
    else:
        print(f"{options.store}: {count} records, all intact")
    return 0


def run_view(options: argparse.Namespace) -> int:
    from imagelmdb.store.export import draw_sheet
    from imagelmdb.store.reader import LMDBStore

    sheet = draw_sheet(LMDBStore(options.store), options.index)
    try:
        sheet.save(options.output)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {options.output}: {error}") from error
    print(options.output)
    return 0


def run_export(options: argparse.Namespace) -> int:
    from imagelmdb.store.export import export
    from imagelmdb.store.reader import LMDBStore

    count = export(LMDBStore(options.store), options.output, progress=True)
    print(f"{Path(options.output)}: {count} images")
    return 0


def run_bench(options: argparse.Namespace) -> int:
    if options.epochs < 1:
        raise UserError(f"--epochs {options.epochs}: at least 1")

    from imagelmdb.bench import compare, draw_chart, print_timings

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
    sys.exit(main())

"""The `imagelmdb` command: make a store, look at it, check it, take it apart.

    imagelmdb convert --dataset /imagenet/train -o train-lmdb/
    imagelmdb info train-lmdb/

`python -m imagelmdb` is the same. Each command imports what it needs when it runs, so that --help and a
mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from imagelmdb.command_line import Parser
from imagelmdb.errors import EXIT_DAMAGED, EXIT_UNFINISHED, UserError, printable, run_command

if TYPE_CHECKING:
    from imagelmdb.store.convert import Report

EXAMPLES = """\
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


MAX_PIXELS_HELP = "refuse larger images (default: 178956970, as Pillow)"


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

    def add_command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> Callable:
        """Returns the function that adds an option to it."""
        command = commands.add_parser(name, help=help)
        command.set_defaults(run=run)
        return command.add_argument

    convert = commands.add_parser("convert", help="convert images into a store")
    convert.set_defaults(run=run_convert)
    add_convert_options(convert)

    add = add_command("info", run_info, "show count, classes, bytes, encoding, shards, digest")
    add("store", metavar="STORE", help="a directory, a file, or a folder of shards")
    add("--json", action="store_true", help="print one JSON object")

    text = "check every byte and decode every record; exit code 1 if any is damaged"
    add = add_command("verify", run_verify, text)
    add("store", metavar="STORE")
    add("--quick", action="store_true", help="check the structure and 1000 records only")
    text = "compare with what the store was made from: with the very bytes, unless it was made to differ"
    add("--source", metavar="DATA", help=text)
    add("--devkit", metavar="TAR", help="the labels of --source, as in a conversion")
    add("--max-pixels", type=int, metavar="N", help=MAX_PIXELS_HELP)
    add("--workers", type=int, metavar="N", help="threads (default: one per core)")

    add = add_command("view", run_view, "draw a contact sheet with labels")
    add("store", metavar="STORE")
    add("-o", "--output", default="sheet.png", metavar="FILE", help="the picture (default: sheet.png)")
    add("--index", type=int, nargs="+", metavar="N", help="records to show (default: 40, evenly spread)")

    add = add_command("export", run_export, "write the images back to class folders")
    add("store", metavar="STORE")
    add("-o", "--output", required=True, metavar="FOLDER", help="the folder to write")

    add = add_command("bench", run_bench, "time a folder of images against its store, side by side")
    add("--folder", required=True, metavar="FOLDER", help="the folder of class folders")
    add("--lmdb", required=True, metavar="STORE", help="the store made from it")
    add("--epochs", type=int, default=3, metavar="N", help="epochs of each (default: 3)")
    add("--train", action="store_true", help="train a ResNet-18 on the batches as well")
    add("--batch-size", type=int, default=64, metavar="N", help="images (default: 64)")
    add("--size", type=int, default=224, metavar="PX", help="of the crops (default: 224)")
    add("--workers", type=int, default=2, metavar="N", help="processes of each loader (default: 2)")
    add("-o", "--output", default="bench.svg", metavar="FILE", help="the chart (default: bench.svg)")
    return parser


def add_convert_options(parser: Parser) -> None:
    """The options and the help of `imagelmdb convert` and of folder2lmdb.py."""
    parser.description, parser.epilog = "Convert image classification data into an LMDB store.", EXAMPLES
    title = "what to convert, and where to (either --dataset and -o, or -f and -s)"
    add = functools.partial(parser.add_argument, group=title)
    add(
        "--dataset",
        metavar="PATH",
        help="a folder of class folders, an official ImageNet tar, a list file with a line `path label` per "
        "image, WebDataset shards, parquet files, or another store",
    )
    add("-o", "--output", metavar="STORE", help="the store to write")
    add("-f", "--folder", "--from-dir", metavar="ROOT", help="the folder that has the split")
    add("-s", "--split", metavar="NAME", help="convert ROOT/NAME into NAME.lmdb")
    add("--to-dir", metavar="DIR", help="the folder for NAME.lmdb (default: ROOT)")
    text = "ILSVRC2012_devkit_t12.tar.gz, which has the labels of ImageNet's validation images"
    add("--devkit", metavar="TAR", help=text)

    title = "how images are stored (default: the files' bytes, with an index of their tiles)"
    add = functools.partial(parser.add_argument, group=title)
    add(
        "--encoding",
        "--save-as",
        choices=("jpeg", "raw", "numpy"),
        help="jpeg; or raw pixels, about 5 times the size and fastest to read (numpy means raw; "
        "fast-pytorch-loader's raw, the files' own bytes, is --no-tile here). "
        "Default: jpeg, but raw if the source is a store of raw pixels",
    )
    add("--max-size", type=int, metavar="PX", help="shrink images to this longest side")
    add("--quality", type=int, metavar="Q", help="re-encode all images as JPEGs of this quality")
    text = "write each JPEG anew with the same coefficients, so that a crop can be cut out as a smaller JPEG"
    add("--recode", action="store_true", help=text)
    add("--no-tile", action="store_true", help="leave out the index")
    add("--shards", type=int, default=1, metavar="N", help="write a directory of N LMDBs")
    add("--shuffle", action="store_true", help="mix the classes on disk")
    add("--seed", type=int, default=0, metavar="N", help="seed of --shuffle (default: 0)")

    add = functools.partial(parser.add_argument, group="the run")
    add("-p", "--workers", "--procs", type=int, metavar="N", help="threads (default: one per core)")
    add("--skip-bad", action="store_true", help="leave out the files that are not images")
    add("--max-pixels", type=int, metavar="N", help=MAX_PIXELS_HELP)
    add("--force", action="store_true", help="replace an existing store")


def run_convert(options: argparse.Namespace) -> int:
    dataset, output = choose_paths(options)

    from imagelmdb.store.convert import convert
    from imagelmdb.store.encode import Encoding
    from imagelmdb.store.sources import open_source

    if sys.stderr and sys.stderr.isatty():  # it takes half a minute for ImageNet's tars
        say(f"listing {dataset} ...", sys.stderr)
    source = open_source(dataset, devkit=options.devkit)
    encoding = options.encoding or source.encoding
    encoding = "raw" if encoding == "numpy" else encoding
    names = ("workers", "shards", "shuffle", "seed", "skip_bad", "force")
    settings = {name: getattr(options, name) for name in names}
    how = Encoding(encoding, not options.no_tile, options.max_size, options.quality, recode=options.recode)
    max_pixels = get_max_pixels(options)
    report = convert(source, output, how=how, max_pixels=max_pixels, progress=True, **settings)
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


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line that may quote names from outside."""
    print(printable(line), file=file)


def print_summary(report: Report) -> None:
    rate = report.converted / max(report.seconds, 1e-9)
    done = f"{report.converted} images in {report.seconds:.1f} s ({rate:.0f} images/s)"
    if report.complete:
        say(f"{report.path}: {report.count} images, {report.store_bytes / 1e6:.1f} MB; {done}")
        say(f"digest {report.digest}")
    else:
        say(f"{report.path}: {done}")
    print_notes("re-encoded", report.reencoded)
    print_notes("written anew without loss", report.recoded)
    if report.bad:
        say(f"not images: {len(report.bad)}, all listed in {report.errors_file}:", sys.stderr)
        for item in report.bad[:10]:
            say(f"  {item.name}: {item.reason}", sys.stderr)
    if not report.complete:
        way_out = "repair these files and run the same command again, or add --skip-bad."
        print(f"The store is unfinished: {way_out}", file=sys.stderr)


def print_notes(what: str, notes: list[tuple[str, str]]) -> None:
    names: dict[str, list[str]] = {}  # by the reason why
    for name, reason in notes:
        names.setdefault(reason, []).append(name)
    for reason, some in sorted(names.items(), key=lambda item: -len(item[1])):
        more = ", ..." if len(some) > 5 else ""
        say(f"{what} {len(some)}, {reason}: {', '.join(some[:5])}{more}")


def get_max_pixels(options: argparse.Namespace) -> int:
    from imagelmdb.store.images import MAX_PIXELS

    if options.max_pixels is None:
        return MAX_PIXELS
    if options.max_pixels < 1:
        raise UserError(f"--max-pixels {options.max_pixels}: at least 1")
    return options.max_pixels


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
        say(f"{name:12} {value}")
    return 0


def run_verify(options: argparse.Namespace) -> int:
    from imagelmdb.store.reader import LMDBStore
    from imagelmdb.store.sources import open_source
    from imagelmdb.store.verify import QUICK_RECORDS, verify

    if options.devkit and not options.source:
        raise UserError("--devkit goes with --source")
    source = open_source(options.source, devkit=options.devkit) if options.source else None
    settings = {"quick": options.quick, "workers": options.workers, "source": source}
    problems = verify(options.store, max_pixels=get_max_pixels(options), progress=True, **settings)
    for problem in problems:
        say(problem)
    if problems:
        say(f"{options.store}: {len(problems)} problems", sys.stderr)
        return EXIT_DAMAGED
    count = len(LMDBStore(options.store))
    part = f"{QUICK_RECORDS} of " if options.quick and count > QUICK_RECORDS else ""
    as_in = f", and as in {options.source}" if source else ""
    say(f"{options.store}: {part}{count} records{' checked' if part else ''}, all intact{as_in}")
    return 0


def run_view(options: argparse.Namespace) -> int:
    from imagelmdb.store.export import draw_sheet
    from imagelmdb.store.reader import LMDBStore

    sheet = draw_sheet(LMDBStore(options.store), options.index)
    try:
        sheet.save(options.output)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {options.output}: {error}") from error
    say(options.output)
    return 0


def run_export(options: argparse.Namespace) -> int:
    from imagelmdb.store.export import export
    from imagelmdb.store.reader import LMDBStore

    count = export(LMDBStore(options.store), options.output, progress=True)
    say(f"{Path(options.output)}: {count} images")
    return 0


def run_bench(options: argparse.Namespace) -> int:
    if options.epochs < 1:
        raise UserError(f"--epochs {options.epochs}: at least 1")

    from imagelmdb.bench import compare, draw_chart, print_timings

    names = ("epochs", "train", "batch_size", "size", "workers")
    settings = {name: getattr(options, name) for name in names}
    timings = compare(options.folder, options.lmdb, **settings)
    print_timings(timings)
    draw_chart(timings, options.output)
    say(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Turn ImageNet, or any image classification data, into an LMDB store.

python folder2lmdb.py --dataset /imagenet/train -o train-lmdb/

Here is also the store as a dataset: from folder2lmdb import ImageFolderLMDB
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from imagelmdb.command_line import Parser
from imagelmdb.errors import UserError, run_command
from imagelmdb.store.convert import Report, convert
from imagelmdb.store.encode import Encoding
from imagelmdb.store.sources import Source, open_source

EXAMPLES = """\
examples:
  python folder2lmdb.py --dataset /imagenet/train -o train-lmdb/
  python folder2lmdb.py --dataset ILSVRC2012_img_train.tar -o train-lmdb/
  python folder2lmdb.py --dataset ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12.tar.gz -o val-lmdb/
  python folder2lmdb.py -f ~/data/cats_vs_dogs -s train             # -> ~/data/cats_vs_dogs/train.lmdb
  python folder2lmdb.py --from_dir SRC --to_dir DST --split train   # -> DST/train.lmdb
  python folder2lmdb.py --dataset old.lmdb -o new.lmdb              # a store of an older tool

An output that ends in .lmdb is one file, any other a directory. Interrupted, killed or out of disk, the
same command goes on where it stopped.

exit codes: 0 finished, 2 wrong use or no image at all, 3 some files are no images (see errors.jsonl,
--skip-bad), 4 disk full
"""


def __getattr__(name: str):
    if name == "ImageFolderLMDB":  # on demand: a conversion needs no torch
        from imagelmdb.data.imagefolder import ImageFolderLMDB

        return ImageFolderLMDB
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> int:
    options = parse_options()
    dataset, output = choose_paths(options)
    if sys.stderr and sys.stderr.isatty():  # half a minute for ImageNet's tars
        print(f"listing {dataset} ...", file=sys.stderr)
    source = open_source(dataset, devkit=options.devkit)
    report = convert(
        source,
        output,
        how=choose_encoding(options, source),
        workers=options.workers,
        shards=options.shards,
        shuffle=options.shuffle,
        seed=options.seed,
        skip_bad=options.skip_bad,
        force=options.force,
        progress=True,
    )
    print_summary(report)
    return 0 if report.complete else 3


def parse_options() -> argparse.Namespace:
    parser = Parser(
        description="Turn image classification data into an LMDB store.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    paths = parser.add_argument_group("what and where (--dataset and -o, or -f and -s)")
    paths.add_argument(
        "--dataset",
        metavar="PATH",
        help="folder of class folders, official ImageNet tar, list file of 'path label' lines, WebDataset "
        "shards, parquet files, or another store",
    )
    paths.add_argument("-o", "--output", metavar="STORE", help="the store to write")
    paths.add_argument(
        "-f", "--folder", "--from_dir", "--from-dir", metavar="ROOT", help="the folder that holds the split"
    )
    paths.add_argument("-s", "--split", metavar="NAME", help="convert ROOT/NAME into NAME.lmdb")
    paths.add_argument("--to_dir", "--to-dir", metavar="DIR", help="where NAME.lmdb goes (default: ROOT)")
    paths.add_argument("--devkit", metavar="TAR", help="ILSVRC2012_devkit_t12.tar.gz, for the val tar")

    stored = parser.add_argument_group("how images are stored (default: losslessly tiled JPEG)")
    stored.add_argument(
        "--encoding",
        "--save-as",
        choices=("jpeg", "raw", "numpy"),
        help="jpeg, or raw pixels (numpy is another word for raw): about 5 times the size, fastest to read; "
        "default: jpeg, and raw from a store of raw pixels",
    )
    stored.add_argument("--max-size", type=int, metavar="PX", help="shrink images to this longest side")
    stored.add_argument(
        "--quality", type=int, metavar="Q", help="re-encode every image as JPEG of this quality"
    )
    stored.add_argument(
        "--no-tile",
        action="store_true",
        help="keep the files' bytes; only headers and end are checked",
    )
    stored.add_argument("--shards", type=int, default=1, metavar="N", help="a directory of N LMDBs, not one")
    stored.add_argument("--shuffle", action="store_true", help="mix the classes on disk")
    stored.add_argument("--seed", type=int, default=0, help="of --shuffle (default: 0)")

    run = parser.add_argument_group("the run")
    run.add_argument(
        "-p",
        "--workers",
        "--procs",
        type=int,
        metavar="N",
        help="threads (default: one a core)",
    )
    run.add_argument("--skip-bad", action="store_true", help="finish without the files that are no images")
    run.add_argument("--force", action="store_true", help="replace a store that is there")
    return parser.parse_args()


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
            raise UserError(f"-s {options.split}: the name of one folder below -f")
        return root / split, options.output or str(Path(options.to_dir or root) / f"{split}.lmdb")
    raise UserError("say what to convert: --dataset PATH -o STORE, or -f ROOT -s SPLIT")


def choose_encoding(options: argparse.Namespace, source: Source) -> Encoding:
    stored = {None: getattr(source, "encoding", "jpeg"), "numpy": "raw"}
    encoding = stored.get(options.encoding, options.encoding)
    return Encoding(encoding, not options.no_tile, options.max_size, options.quality)


def print_summary(report: Report) -> None:
    rate = report.converted / max(report.seconds, 1e-9)
    done = f"{report.converted} images in {report.seconds:.1f} s ({rate:.0f} images/s)"
    if report.complete:
        print(f"{report.path}: {report.count} images, {report.store_bytes / 1e6:.1f} MB; {done}")
        print(f"digest {report.digest}")
    else:
        print(f"{report.path}: {done}")
    for reason, count in Counter(why for _, why in report.reencoded).most_common():
        names = [name for name, why in report.reencoded if why == reason]
        print(f"re-encoded {count}, {reason}: {', '.join(names[:5])}{', ...' if count > 5 else ''}")
    if report.bad:
        print(f"no images: {len(report.bad)}, all in {report.errors_file}:", file=sys.stderr)
        for item in report.bad[:10]:
            print(f"  {item.name}: {item.reason}", file=sys.stderr)
    if not report.complete:
        print(
            "The store is unfinished: mend these files and run the same command again, or add --skip-bad.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(run_command(main))

"""Every option of a run, in one flat frozen dataclass.

    config, explicit = parse_config(["--config", "configs/rn50_90e.yaml", "--train", "T", "--val", "V"])

The command line wins over the recipe (--config FILE.yaml), and the recipe over the defaults below. These are
the defaults of pytorch/examples/imagenet. main.py's --help is made from this dataclass.

A recipe has only the options that differ from its base recipe, or from the defaults:

    base: rn50_90e.yaml   # a path relative to this file
    epochs: 250
    mixup: 0.2
"""

import argparse
import contextlib
import dataclasses
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from imagelmdb.command_line import Parser, add_options, flag, nearest, option, out_of_range
from imagelmdb.errors import DAMAGE, UserError, describe
from imagelmdb.parallel import count_loader_workers

# Options about one launch, not about the run: a run's saved config leaves them out.
LAUNCH_KEYS = ("config", "resume", "evaluate", "export", "profile", "rank", "gpu")


@dataclass(frozen=True)
class Config:
    config: str = option("", "recipe to start from, a YAML file; other options win over it", group="run")
    output: str = option("", "folder for the log, the checkpoints and the report (default: runs/NAME)")
    seed: int = option(0, "seed of the order, the crops, the augmentation and the initial weights")
    resume: str = option(
        "",
        "continue from a checkpoint: its path, or `auto` for the last one in --output (a new run if there is "
        "none). A last.pt in --output that the run does not continue from is renamed previous.pt",
    )
    evaluate: bool = option(False, "evaluate and exit", "-e")
    dummy: bool = option(False, "train on random images made on the device, to time the model alone")
    dummy_images: int = option(1_281_167, "images in an epoch of --dummy", least=1)
    print_freq: int = option(10, "steps between progress lines; each waits for the device", "-p", least=1)
    checkpoint_steps: int = option(0, "save a checkpoint every N steps; 0: never. Each epoch ends with one")
    checkpoint_minutes: float = option(30.0, "save a checkpoint every X minutes; 0: never")
    keep_checkpoints: int = option(1, "keep the checkpoints of the last N epochs besides last.pt and best.pt")
    tensorboard: bool = option(False, "write TensorBoard events into the run's folder")
    wandb: bool = option(False, "log to Weights & Biases")
    profile: int = option(0, "write a torch profiler trace of N steps into the run's folder; 0: none")
    export: str = option("", "after the run, write the best weights as FILE.pt2 or FILE.onnx")

    train: str = option("", "training images: a folder of class folders, or a store (--lmdb)", group="data")
    val: str = option("", "validation images: a folder of class folders, or a store (--lmdb)")
    lmdb: bool = option(False, "--train and --val are LMDB stores")
    workers: int | None = option(
        None,
        "loader threads per rank, or processes where an image needs Python, as with --auto-augment (default: "
        "4, or the number of cores if that is smaller)",
        "-j",
    )
    worker_timeout: float = option(
        300.0, "seconds after which a loader worker that does not answer ends the run; 0: never"
    )
    decode: Literal["auto", "tiles", "libjpeg", "pillow", "gpu", "cpu"] = option(
        "auto",
        "what decodes JPEGs. auto, or cpu: tiles, our own decoder, or libjpeg where it cannot be; pillow: as "
        "torchvision; gpu needs nvidia-dali. tiles and libjpeg give equal pixels",
    )
    shuffle: Literal["full", "block", "local"] = option(
        "full",
        "full: all images in random order; block: random blocks of neighbouring images; local: each node "
        "reads the shards on its own disk. block and local suit stores larger than memory",
    )
    prefetch_pages: bool = option(False, "ask the disk early for images; for stores larger than memory")
    check: Literal["once", "always", "off"] = option(
        "once",
        "when a record is compared with its checksum: when the run first reads it, at each read, or never",
    )
    dct_scale: bool = option(False, "decode large crops at 1/2, 1/4 or 1/8 size: faster, but other pixels")
    max_pixels: int | None = option(None, "refuse larger images (default: 178956970, as Pillow)", least=1)
    repeats: int = option(1, "repeated augmentation: N crops of each image in a row", least=1)

    train_size: int = option(224, "training crop, px", group="resolution", least=1)
    val_size: int = option(224, "validation crop, px", least=1)
    val_resize: int = option(0, "shorter side before the validation crop, px; 0: --val-size / --crop-ratio")
    crop_ratio: float = option(0.875, "validation crop / resized shorter side", least=0.1, most=1)
    flip_tta: bool = option(False, "evaluate each image and its mirror image, and add the two outputs")
    start_size: int = option(0, "progressive resizing: training crop of the first epochs, px; 0: off")
    grow_from: float = option(0.0, "share of the run after which the crop grows from start-size", most=1)
    grow_until: float = option(0.0, "share of the run after which the crop is train-size", most=1)
    size_step: int = option(32, "the crop grows in multiples of this, px", least=1)

    scale: tuple[float, float] = option(
        (0.08, 1.0), "share of the image in the random crop: least and most", group="augmentation", most=1
    )
    ratio: tuple[float, float] = option((3 / 4, 4 / 3), "width / height of the random crop: least and most")
    hflip: float = option(0.5, "probability of a horizontal flip", most=1)
    auto_augment: str = option("", "ta_wide or ra (torchvision's), or timm's, such as rand-m7-mstd0.5-inc1")
    random_erase: float = option(0.0, "probability of erasing a random box of an image", most=1)
    mixup: float = option(0.0, "mixup alpha; 0: off. If cutmix is on too, each step uses one of the two")
    cutmix: float = option(0.0, "cutmix alpha; 0: off")

    arch: str = option("resnet18", "a torchvision model, or timm:NAME", "-a", group="model")
    pretrained: bool = option(False, "start from the library's trained weights")
    zero_init: bool = option(False, "start the last BatchNorm of each residual block at gamma 0")
    blurpool: bool = option(False, "blur before each strided convolution of 16 channels or more")
    blurpool_maxpool: bool = option(False, "with blurpool: blur after max pooling as well")
    drop_path: float = option(0.0, "stochastic depth: probability of skipping the last block (timm)", most=1)
    prior_bias: bool = option(False, "start the bias of the last layer at -log(classes); for --loss bce")
    sync_bn: bool = option(False, "compute BatchNorm statistics over all ranks")
    ema_decay: float = option(0.0, "average the weights, with this decay at each update; 0: off", most=1)
    ema_every: int = option(1, "steps between two updates of the average", least=1)

    epochs: int = option(90, "epochs of the whole run", group="optimisation", least=1)
    batch_size: int = option(256, "global batch: the images of one step over ALL ranks", "-b", least=1)
    accumulate: int = option(1, "to save memory, do a rank's share of the batch in N parts", least=1)
    optimizer: Literal["sgd", "sgdw", "adamw", "lamb", "lars"] = option("sgd", "lamb, lars, sgdw are timm's")
    lr: float = option(0.1, "peak learning rate for the global batch; it is used as given, never scaled")
    momentum: float = option(0.9, "for sgd, sgdw and lars")
    nesterov: bool = option(False, "Nesterov momentum, for sgd, sgdw and lars")
    betas: tuple[float, float] = option((0.9, 0.999), "for adamw and lamb", most=1)
    eps: float = option(1e-8, "for adamw, lamb and lars")
    trust_coefficient: float = option(1e-3, "eta of lars")
    weight_decay: float = option(1e-4, "decoupled in sgdw and adamw, else added to the gradient", "--wd")
    wd_skip: Literal["none", "norm", "norm+bias"] = option("none", "parameters without weight decay")
    clip_grad: float = option(0.0, "clip the gradient to this norm; 0: off")
    loss: Literal["ce", "bce"] = option("ce", "ce: softmax cross entropy; bce: one sigmoid per class")
    label_smoothing: float = option(0.0, "share of the target that is spread over all classes", most=1)
    bce_threshold: float = option(0.0, "bce: targets above this become 1, others 0; 0: leave them", most=1)
    bce_sum: bool = option(False, "bce: sum over the classes instead of their mean")

    schedule: Literal["step", "cosine", "linear", "triangular", "poly"] = option(
        "step", "how the learning rate falls after the warm-up; set at every step", group="learning rate"
    )
    warmup_epochs: float = option(0.0, "epochs in which the learning rate rises linearly to its peak")
    warmup_start: float = option(0.0, "learning rate at the first step, as a share of the peak", most=1)
    lr_end: float = option(0.0, "all but step: last learning rate, as a share of the peak", most=1)
    lr_step_epochs: int = option(30, "step: epochs between two drops", least=1)
    lr_step_factor: float = option(0.1, "step: each drop multiplies the learning rate by this")
    lr_power: float = option(2.0, "poly: the exponent")

    amp: Literal["off", "bf16", "fp16"] = option("off", "mixed precision", group="speed")
    tf32: bool = option(True, "use TF32 in matrix products and convolutions")
    channels_last: bool = option(True, "use the NHWC memory format")
    compile: bool = option(False, "compile the model with torch.compile")
    deterministic: bool = option(False, "use only deterministic kernels: slower, but repeatable on a GPU too")

    gpu: int | None = option(None, "use this GPU only (default: the local rank's)", group="distributed")
    dist_backend: Literal["auto", "nccl", "gloo"] = option("auto", "auto: nccl on GPUs, gloo on CPUs")
    dist_url: str = option("env://", "where the ranks meet; env:// under torchrun")
    multiprocessing_distributed: bool = option(False, "start a process for each GPU; not with torchrun")
    world_size: int = option(-1, "nodes with --multiprocessing-distributed, else processes", least=-1)
    rank: int = option(-1, "node's number with --multiprocessing-distributed, else process's", least=-1)

    def __post_init__(self) -> None:
        for problem in out_of_range(self):
            raise UserError(problem)
        for problem, found in _impossible(self).items():
            if found:
                raise UserError(problem)

    @property
    def run_dir(self) -> Path:
        """Where the run writes: --output, or runs/NAME, named after the recipe or the model."""
        name = Path(self.config).stem or self.arch.replace(":", "_").replace("/", "_")
        return Path(self.output) if self.output else Path("runs") / name

    @property
    def loader_workers(self) -> int:
        return count_loader_workers(self.workers)

    @property
    def eval_resize(self) -> int:
        """The shorter side before the validation crop, px; rounded down, as timm does."""
        return self.val_resize or int(self.val_size / self.crop_ratio)


def _impossible(c: Config) -> dict[str, bool]:
    """Combinations of options that make no sense: the message -> is it so here?"""
    for_bce = bool(c.bce_threshold or c.bce_sum or c.prior_bias)
    return {
        f"--warmup-epochs {c.warmup_epochs:g} fills --epochs {c.epochs}": c.warmup_epochs >= c.epochs,
        "--schedule triangular needs --warmup-epochs": c.schedule == "triangular" and not c.warmup_epochs,
        f"--val-resize {c.val_resize} is smaller than --val-size {c.val_size}": 0 < c.val_resize < c.val_size,
        f"--start-size {c.start_size} is above --train-size {c.train_size}": c.start_size > c.train_size,
        "--start-size needs --grow-until above --grow-from": c.start_size > 0 and c.grow_until <= c.grow_from,
        "--grow-from and --grow-until need --start-size": not c.start_size and c.grow_from + c.grow_until > 0,
        f"--scale {c.scale}: the first number is above the second": c.scale[0] > c.scale[1],
        f"--ratio {c.ratio}: the first number is above the second": c.ratio[0] > c.ratio[1],
        "--nesterov needs --momentum above 0": c.nesterov and not c.momentum,
        "--bce-threshold, --bce-sum and --prior-bias need --loss bce": c.loss != "bce" and for_bce,
        "--blurpool-maxpool needs --blurpool": c.blurpool_maxpool and not c.blurpool,
        "--dummy has no images to --evaluate": c.dummy and c.evaluate,
        "--export with --evaluate needs the checkpoint: --resume PATH": (
            bool(c.export) and c.evaluate and not c.resume
        ),
        f"--export {c.export}: the name must end in .pt2 or .onnx": (
            bool(c.export) and Path(c.export).suffix not in (".pt2", ".onnx")
        ),
    }


def parse_config(argv: Sequence[str] | None = None) -> tuple[Config, frozenset[str]]:
    """The config, and the keys that the command line itself set. --help and --version print and exit."""
    parser = Parser(
        prog="main.py",
        usage="%(prog)s --train PATH --val PATH [--lmdb] [--config RECIPE.yaml] [other options]",
        description="Train or evaluate an image classifier. README.md shows the common commands.",
        argument_default=argparse.SUPPRESS,
    )
    add_options(parser, Config)
    words = vars(parser.parse_args(argv))
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in words.items()}
    values = load_recipe(given["config"]) if given.get("config") else {}
    config = Config(**values | given)
    if not config.resume:  # a checkpoint may name the images
        check_images(config)
    return config, frozenset(given)


def check_images(config: Config) -> None:
    """Raise UserError if the config does not name the images that the run needs."""
    for key in () if config.dummy else ("val",) if config.evaluate else ("train", "val"):
        if not getattr(config, key):
            raise UserError(f"{flag(key)} is missing: give a folder of class folders, or a store with --lmdb")


def load_recipe(path: str | Path, derived: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's values on top of those of its base. `derived`: the recipes that led here by their `base`."""
    path, hints = Path(path), get_type_hints(Config)
    hints.pop("config")
    values = _read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"--config {path} has no keys")
    base = values.pop("base", None)
    derived = (*derived, path.resolve())
    if base is not None and (path.parent / str(base)).resolve() in derived:
        raise UserError(f"--config {path}: base {base} leads back to itself")
    for key, value in values.items():
        if key not in hints:
            hint = nearest(str(key), hints) or "; main.py --help lists them all"
            raise UserError(f"--config {path}: unknown key {key!r}{hint}")
        try:
            values[key] = _convert(value, hints[key])
        except ValueError as error:
            raise UserError(f"--config {path}: {key}: {error}") from None
    if base is None:
        return values
    return load_recipe(path.parent / str(base), derived) | values


def _read_yaml(path: Path) -> Any:
    import yaml  # 30 ms, which --help and a typo need not wait for

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            """A node. Aliases of anything but single values are refused: nested ones grow exponentially."""
            if self.check_event(yaml.AliasEvent):
                name = self.peek_event().anchor
                if not isinstance(self.anchors.get(name), yaml.ScalarNode):
                    raise yaml.YAMLError(f"*{name} does not name a single value")
            return super().compose_node(parent, index)

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, *DAMAGE) as error:
        raise UserError(f"--config {path} is not YAML: {describe(error)}") from None


def _convert(value: Any, hint: Any) -> Any:
    """The value as the field's type, or ValueError."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        if value is False and "off" in choices:  # what YAML 1.1 makes of the word
            return "off"
        if value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}{nearest(str(value), choices)}")
        return value
    if get_origin(hint) in (Union, types.UnionType):
        return None if value is None else _convert(value, choices[0])
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or len(value) != len(choices):
            raise ValueError(f"{value!r} is not a list of {len(choices)}")
        return tuple(_convert(v, h) for v, h in zip(value, choices, strict=True))
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):  # a str, because YAML 1.1 reads 1e-4 as a word
            return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{value!r} is not of type {hint.__name__}")
    return value


def save_config(config: Config, path: str | Path) -> None:
    """Write every key that belongs to the run. `main.py --config PATH` runs it again."""
    import yaml

    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    values["output"] = str(config.run_dir)
    kept = {key: value for key, value in values.items() if key not in LAUNCH_KEYS}
    Path(path).write_text(yaml.safe_dump(kept, sort_keys=False))

"""Every option of a run, in one flat frozen dataclass.

    config, explicit = parse_config(["--config", "configs/rn50_90e.yaml", "--train", "T", "--val", "V"])

The command line wins over the recipe (--config FILE.yaml), and the recipe over the defaults below. These are
the defaults of pytorch/examples/imagenet. main.py's --help is made from this dataclass.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_type_hints

from imagelmdb.command_line import Parser, add_options, flag, option, out_of_range
from imagelmdb.errors import UserError
from imagelmdb.parallel import count_loader_workers
from imagelmdb.recipe import load_recipe

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
    print_freq: int = option(
        10, "steps between progress lines; each line waits for the device", "-p", least=1
    )
    checkpoint_steps: int = option(
        0, "save a checkpoint every N steps; 0: never. The end of an epoch always saves one"
    )
    checkpoint_minutes: float = option(30.0, "save a checkpoint every X minutes; 0: never")
    keep_checkpoints: int = option(
        1, "keep the checkpoints of the last N epochs, besides last.pt and best.pt"
    )
    tensorboard: bool = option(False, "write TensorBoard events into the run's folder")
    wandb: bool = option(False, "log to Weights & Biases")
    profile: int = option(0, "write a torch profiler trace of N steps into the run's folder; 0: none")
    export: str = option("", "after the run, write the best weights as FILE.pt2 or FILE.onnx")

    train: str = option("", "training images: a folder of class folders, or a store (--lmdb)", group="data")
    val: str = option("", "validation images: a folder of class folders, or a store (--lmdb)")
    lmdb: bool = option(False, "--train and --val are LMDB stores")
    workers: int | None = option(
        None, "loader processes per rank (default: 4, or the number of cores if that is smaller)", "-j"
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
    prefetch_pages: bool = option(
        False, "ask the disk early for the images to come; for stores larger than memory"
    )
    dct_scale: bool = option(
        False,
        "decode large crops at 1/2, 1/4 or 1/8 size: faster, but not the pixels of the published recipes",
    )
    repeats: int = option(
        1, "repeated augmentation: each image is in N batches in a row, with another crop in each", least=1
    )

    train_size: int = option(224, "training crop, px", group="resolution", least=1)
    val_size: int = option(224, "validation crop, px", least=1)
    val_resize: int = option(
        0, "resize the shorter side to this before the validation crop, px; 0: --val-size / --crop-ratio"
    )
    crop_ratio: float = option(
        0.875, "the validation crop as a share of the resized shorter side", least=0.1, most=1
    )
    flip_tta: bool = option(False, "evaluate each image and its mirror image, and add the two outputs")
    start_size: int = option(0, "progressive resizing: training crop of the first epochs, px; 0: off")
    grow_from: float = option(0.0, "share of the run after which the crop grows from start-size", most=1)
    grow_until: float = option(0.0, "share of the run after which the crop is train-size", most=1)
    size_step: int = option(32, "the crop grows in multiples of this, px", least=1)

    scale: tuple[float, float] = option(
        (0.08, 1.0),
        "area of the random crop, as a share of the image: least and most",
        group="augmentation",
        most=1,
    )
    ratio: tuple[float, float] = option((3 / 4, 4 / 3), "width / height of the random crop: least and most")
    hflip: float = option(0.5, "probability of a horizontal flip", most=1)
    auto_augment: str = option(
        "", "ta_wide or ra (torchvision's), or a timm policy such as rand-m7-mstd0.5-inc1"
    )
    random_erase: float = option(0.0, "probability of erasing a random box of an image", most=1)
    mixup: float = option(0.0, "mixup alpha; 0: off. If cutmix is on too, each step uses one of the two")
    cutmix: float = option(0.0, "cutmix alpha; 0: off")

    arch: str = option("resnet18", "a torchvision model, or timm:NAME", "-a", group="model")
    pretrained: bool = option(False, "start from the library's trained weights")
    zero_init: bool = option(False, "start the last BatchNorm of each residual block at gamma 0")
    blurpool: bool = option(False, "blur before each strided convolution of 16 channels or more")
    blurpool_maxpool: bool = option(False, "with blurpool: blur after max pooling as well")
    drop_path: float = option(
        0.0, "stochastic depth: the probability of skipping the last block (timm models)", most=1
    )
    prior_bias: bool = option(False, "start the bias of the last layer at -log(classes); for --loss bce")
    sync_bn: bool = option(False, "compute BatchNorm statistics over all ranks")
    ema_decay: float = option(0.0, "average the weights, with this decay at each update; 0: off", most=1)
    ema_every: int = option(1, "steps between two updates of the average", least=1)

    epochs: int = option(90, "epochs of the whole run", group="optimisation", least=1)
    batch_size: int = option(256, "global batch: the images of one step over ALL ranks", "-b", least=1)
    accumulate: int = option(
        1, "split a rank's share of the batch into N parts, one after the other, to save memory", least=1
    )
    optimizer: Literal["sgd", "sgdw", "adamw", "lamb", "lars"] = option(
        "sgd", "lamb, lars and sgdw are timm's"
    )
    lr: float = option(0.1, "peak learning rate for the global batch; it is used as given, never scaled")
    momentum: float = option(0.9, "for sgd, sgdw and lars")
    nesterov: bool = option(False, "Nesterov momentum, for sgd, sgdw and lars")
    betas: tuple[float, float] = option((0.9, 0.999), "for adamw and lamb", most=1)
    eps: float = option(1e-8, "for adamw, lamb and lars")
    trust_coefficient: float = option(1e-3, "eta of lars")
    weight_decay: float = option(
        1e-4, "weight decay: decoupled in sgdw and adamw, added to the gradient otherwise", "--wd"
    )
    wd_skip: Literal["none", "norm", "norm+bias"] = option("none", "parameters without weight decay")
    clip_grad: float = option(0.0, "clip the gradient to this norm; 0: off")
    loss: Literal["ce", "bce"] = option("ce", "ce: softmax cross entropy; bce: one sigmoid per class")
    label_smoothing: float = option(0.0, "share of the target that is spread over all classes", most=1)
    bce_threshold: float = option(
        0.0, "bce: targets above this become 1, the others 0; 0: leave the targets as they are", most=1
    )
    bce_sum: bool = option(False, "bce: sum over the classes instead of their mean")

    schedule: Literal["step", "cosine", "linear", "triangular", "poly"] = option(
        "step",
        "how the learning rate falls after the warm-up; it is set at every step",
        group="learning rate",
    )
    warmup_epochs: float = option(0.0, "epochs in which the learning rate rises linearly to its peak")
    warmup_start: float = option(0.0, "learning rate at the first step, as a share of the peak", most=1)
    lr_end: float = option(
        0.0, "cosine, linear, triangular, poly: last learning rate, as a share of the peak", most=1
    )
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
    multiprocessing_distributed: bool = option(
        False, "start one process per GPU of this node; not with torchrun"
    )
    world_size: int = option(
        -1, "number of nodes with --multiprocessing-distributed, of processes otherwise", least=-1
    )
    rank: int = option(
        -1, "this node's number with --multiprocessing-distributed, else this process's", least=-1
    )

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
        """Loader processes per rank."""
        return count_loader_workers(self.workers)

    @property
    def eval_resize(self) -> int:
        """The shorter side before the validation crop, px; rounded down, as timm does."""
        return self.val_resize or int(self.val_size / self.crop_ratio)


def _impossible(c: Config) -> dict[str, bool]:
    """Combinations of options that make no sense: the message -> is it so here?"""
    return {
        f"--warmup-epochs {c.warmup_epochs:g} fills --epochs {c.epochs}": c.warmup_epochs >= c.epochs,
        "--schedule triangular needs --warmup-epochs, its rising side": (
            c.schedule == "triangular" and not c.warmup_epochs
        ),
        f"--val-resize {c.val_resize} is smaller than --val-size {c.val_size}": 0 < c.val_resize < c.val_size,
        f"--start-size {c.start_size} is above --train-size {c.train_size}": c.start_size > c.train_size,
        "--start-size needs --grow-until above --grow-from": c.start_size > 0 and c.grow_until <= c.grow_from,
        "--grow-from and --grow-until need --start-size": not c.start_size and c.grow_from + c.grow_until > 0,
        f"--scale {c.scale}: the first number is above the second": c.scale[0] > c.scale[1],
        f"--ratio {c.ratio}: the first number is above the second": c.ratio[0] > c.ratio[1],
        "--nesterov needs --momentum above 0": c.nesterov and not c.momentum,
        "--bce-threshold, --bce-sum and --prior-bias need --loss bce": (
            c.loss != "bce" and bool(c.bce_threshold or c.bce_sum or c.prior_bias)
        ),
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
    hints = {key: hint for key, hint in get_type_hints(Config).items() if key != "config"}
    values = load_recipe(given["config"], hints=hints) if given.get("config") else {}
    config = Config(**values | given)
    if not config.resume:  # a checkpoint may name the images
        check_images(config)
    return config, frozenset(given)


def check_images(config: Config) -> None:
    """Raise UserError if the config does not name the images that the run needs."""
    for key in () if config.dummy else ("val",) if config.evaluate else ("train", "val"):
        if not getattr(config, key):
            raise UserError(f"{flag(key)} is missing: give a folder of class folders, or a store with --lmdb")


def save_config(config: Config, path: str | Path) -> None:
    """Write every key that belongs to the run. `main.py --config PATH` runs it again."""
    import yaml

    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    values["output"] = str(config.run_dir)
    kept = {key: value for key, value in values.items() if key not in LAUNCH_KEYS}
    Path(path).write_text(yaml.safe_dump(kept, sort_keys=False))

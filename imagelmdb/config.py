"""Every option of a run, in one flat frozen dataclass: defaults < --config FILE.yaml < command line.

    config, explicit = parse_config(["--config", "configs/rn50_90e.yaml", "--train", "T", "--val", "V"])

The command line and its help are made from the dataclass by tyro. The defaults are those of
pytorch/examples/imagenet.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_type_hints

import yaml

from imagelmdb.command_line import flag, option, out_of_range, parse_command_line
from imagelmdb.errors import UserError
from imagelmdb.parallel import count_cores
from imagelmdb.recipe import load_recipe

DESCRIPTION = "Trains or evaluates an image classifier; README.md has the common commands."
# These say where and how one launch runs, not what the run is: a run's saved config leaves them out.
LAUNCH_KEYS = ("config", "resume", "evaluate", "export", "profile", "rank", "gpu")
DEFAULT_WORKERS = 4  # at the most: torch warns of more than there are cores


@dataclass(frozen=True)
class Config:
    config: str = option("", "YAML file to start from; the command line wins over it", group="run")
    output: str = option("", "folder of the log, the checkpoints and the report (default: runs/NAME)")
    seed: int = option(0, "the order, the crops, the augmentation and the initial weights follow from it")
    resume: str = option(
        "",
        "auto (this run's last checkpoint, or a new run) or a checkpoint's path; "
        "a last.pt in --output that the run does not go on from becomes previous.pt",
    )
    evaluate: bool = option(False, "evaluate and stop", "-e")
    dummy: bool = option(False, "random images made on the device: the speed of the model alone")
    dummy_images: int = option(1_281_167, "images in an epoch of --dummy", least=1)
    print_freq: int = option(
        10, "steps between progress lines; metrics are read from the device then", "-p", least=1
    )
    checkpoint_steps: int = option(
        0, "save a checkpoint every N steps; 0 is off. Each epoch's end always saves"
    )
    checkpoint_minutes: float = option(30.0, "save a checkpoint every so many minutes; 0 is off")
    keep_checkpoints: int = option(1, "keep the last K epochs' checkpoints, besides last.pt and best.pt")
    tensorboard: bool = option(False, "write TensorBoard events into the run's folder")
    wandb: bool = option(False, "log to Weights & Biases")
    profile: int = option(0, "write a torch profiler trace of N steps into the run's folder, then go on")
    export: str = option("", "at the end, write the best weights as FILE.pt2 or FILE.onnx")

    train: str = option(
        "", "training images: a folder of class folders, or a store with --lmdb", group="data"
    )
    val: str = option("", "validation images, likewise")
    lmdb: bool = option(False, "--train and --val are LMDB stores")
    workers: int | None = option(
        None, "loader processes of each rank (default: 4, or its cores where those are fewer)", "-j"
    )
    decode: Literal["cpu", "gpu"] = option("cpu", "where JPEGs are decoded; gpu needs nvidia-dali")
    shuffle: Literal["full", "block", "local"] = option(
        "full", "block and local suit stores larger than memory"
    )
    prefetch_pages: bool = option(False, "ask the disk ahead for the records of a store larger than memory")
    dct_scale: bool = option(
        False, "decode large crops at 1/2, 1/4 or 1/8 size: faster, other pixels than the published recipes'"
    )
    repeats: int = option(
        1, "times each image comes in a row of batches, with other crops (repeated augmentation)", least=1
    )

    train_size: int = option(224, "training crop, px", group="resolution", least=1)
    val_size: int = option(224, "validation crop, px", least=1)
    val_resize: int = option(0, "the shorter side before the validation crop, px; 0: val-size / crop-ratio")
    crop_ratio: float = option(
        0.875, "the validation crop's share of the resized shorter side", least=0.1, most=1
    )
    flip_tta: bool = option(False, "evaluate on each image and its mirror image, and add the outputs")
    start_size: int = option(0, "progressive resizing: the first epochs' training crop, px; 0 is off")
    grow_from: float = option(
        0.0, "share of the run at which the crop starts to grow from start-size", most=1
    )
    grow_until: float = option(0.0, "share of the run from which it is train-size", most=1)
    size_step: int = option(32, "the sizes in between are multiples of this, px", least=1)

    scale: tuple[float, float] = option(
        (0.08, 1.0), "random crop's share of the area", group="augmentation", most=1
    )
    ratio: tuple[float, float] = option((3 / 4, 4 / 3), "random crop's width / height")
    hflip: float = option(0.5, "probability of a horizontal flip", most=1)
    auto_augment: str = option("", "ta_wide, ra (both torchvision's) or timm's, such as rand-m7-mstd0.5-inc1")
    random_erase: float = option(0.0, "probability of erasing a random box of an image", most=1)
    mixup: float = option(0.0, "mixup's alpha; 0 is off. With cutmix, each step takes one of the two")
    cutmix: float = option(0.0, "cutmix's alpha; 0 is off")

    arch: str = option("resnet18", "a torchvision model, or timm:NAME", "-a", group="model")
    pretrained: bool = option(False, "start from the library's trained weights")
    zero_init: bool = option(False, "start each residual block's last BatchNorm at gamma 0")
    blurpool: bool = option(False, "blur before each strided convolution of 16 channels or more")
    blurpool_maxpool: bool = option(False, "with blurpool: max pools are blurred as well")
    drop_path: float = option(
        0.0, "stochastic depth: the last block's probability to be skipped (timm's models)", most=1
    )
    prior_bias: bool = option(False, "start the head's bias at -log(classes), for --loss bce")
    sync_bn: bool = option(False, "BatchNorm over all ranks")
    ema_decay: float = option(0.0, "average the weights with this decay at each update; 0 is off", most=1)
    ema_every: int = option(1, "steps between the average's updates", least=1)

    epochs: int = option(90, "epochs of the whole run", group="optimisation", least=1)
    batch_size: int = option(256, "images of a step over ALL ranks, the global batch", "-b", least=1)
    accumulate: int = option(
        1, "parts in which a rank goes through its share of a batch, to save memory", least=1
    )
    optimizer: Literal["sgd", "sgdw", "adamw", "lamb", "lars"] = option(
        "sgd", "lamb, lars and sgdw are timm's"
    )
    lr: float = option(0.1, "peak learning rate; it belongs to the global batch and is never scaled")
    momentum: float = option(0.9, "of sgd, sgdw and lars")
    nesterov: bool = option(False, "Nesterov's momentum, of sgd, sgdw and lars")
    betas: tuple[float, float] = option((0.9, 0.999), "of adamw and lamb", most=1)
    eps: float = option(1e-8, "of adamw, lamb and lars")
    trust_coefficient: float = option(1e-3, "eta of lars")
    weight_decay: float = option(1e-4, "added to the gradient; decoupled in sgdw and adamw", "--wd")
    wd_skip: Literal["none", "norm", "norm+bias"] = option("none", "parameters without weight decay")
    clip_grad: float = option(0.0, "largest gradient norm; 0 is off")
    loss: Literal["ce", "bce"] = option("ce", "softmax cross entropy, or one sigmoid a class")
    label_smoothing: float = option(0.0, "share of the target spread over all classes", most=1)
    bce_threshold: float = option(
        0.0, "bce: targets above it count as 1, the others as 0; 0: targets as they are", most=1
    )
    bce_sum: bool = option(False, "bce: sum over the classes, not their mean")

    schedule: Literal["step", "cosine", "linear", "triangular", "poly"] = option(
        "step", "the learning rate's course after the warm-up, set at every step", group="learning rate"
    )
    warmup_epochs: float = option(0.0, "epochs in which it rises linearly to the peak")
    warmup_start: float = option(0.0, "where the warm-up starts, as a share of the peak", most=1)
    lr_end: float = option(
        0.0, "where cosine, linear, triangular and poly end, as a share of the peak", most=1
    )
    lr_step_epochs: int = option(30, "step: epochs between the drops", least=1)
    lr_step_factor: float = option(0.1, "step: what each drop multiplies by")
    lr_power: float = option(2.0, "poly: its power")

    amp: Literal["off", "bf16", "fp16"] = option("off", "mixed precision", group="speed")
    tf32: bool = option(True, "TF32 in matrix products and convolutions")
    channels_last: bool = option(True, "NHWC memory format")
    compile: bool = option(False, "torch.compile")
    deterministic: bool = option(False, "only deterministic kernels: slower, repeatable on a GPU as well")

    gpu: int | None = option(None, "the one GPU to use; default: the local rank's", group="distributed")
    dist_backend: Literal["auto", "nccl", "gloo"] = option("auto", "auto: nccl on GPUs, gloo on CPUs")
    dist_url: str = option("env://", "where the ranks meet; torchrun sets env://")
    multiprocessing_distributed: bool = option(
        False, "start one process a GPU of this node; without torchrun"
    )
    world_size: int = option(-1, "nodes with --multiprocessing-distributed, else processes", least=-1)
    rank: int = option(-1, "this node's (or process's) number among them", least=-1)

    def __post_init__(self) -> None:
        for problem in out_of_range(self):
            raise UserError(problem)
        for problem, found in _impossible(self).items():
            if found:
                raise UserError(problem)

    @property
    def run_dir(self) -> Path:
        """Where the run writes: --output, or runs/NAME after the config file or the model."""
        name = Path(self.config).stem or self.arch.replace(":", "_").replace("/", "_")
        return Path(self.output) if self.output else Path("runs") / name

    @property
    def loader_workers(self) -> int:
        """Loader processes of each rank."""
        return min(DEFAULT_WORKERS, count_cores()) if self.workers is None else self.workers

    @property
    def eval_resize(self) -> int:
        """The shorter side before the validation crop, px; rounded down, as timm does."""
        return self.val_resize or int(self.val_size / self.crop_ratio)


def _impossible(c: Config) -> dict[str, bool]:
    return {
        f"--warmup-epochs {c.warmup_epochs:g} fills --epochs {c.epochs}": c.warmup_epochs >= c.epochs,
        "--schedule triangular needs --warmup-epochs, its rising side": (
            c.schedule == "triangular" and not c.warmup_epochs
        ),
        f"--val-resize {c.val_resize} is smaller than --val-size {c.val_size}": 0 < c.val_resize < c.val_size,
        f"--start-size {c.start_size} is above --train-size {c.train_size}": c.start_size > c.train_size,
        "--start-size needs --grow-until above --grow-from": c.start_size > 0 and c.grow_until <= c.grow_from,
        "--grow-from and --grow-until need --start-size": not c.start_size and c.grow_from + c.grow_until > 0,
        f"--scale {c.scale} runs backwards": c.scale[0] > c.scale[1],
        f"--ratio {c.ratio} runs backwards": c.ratio[0] > c.ratio[1],
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
    """The config, and the keys that the command line itself set; --help prints and exits."""
    argv = list(sys.argv[1:] if argv is None else argv)
    given, explicit = parse_command_line(Config, argv, description=DESCRIPTION)
    hints = {key: hint for key, hint in get_type_hints(Config).items() if key != "config"}
    values = load_recipe(given["config"], hints=hints) if given["config"] else {}
    config = Config(**values | {key: given[key] for key in explicit})
    if not config.resume:  # else a checkpoint may name them
        check_images(config)
    return config, explicit


def check_images(config: Config) -> None:
    """UserError where the run's images are not named."""
    for key in () if config.dummy else ("val",) if config.evaluate else ("train", "val"):
        if not getattr(config, key):
            raise UserError(f"{flag(key)} is missing: give the folder, or the store with --lmdb")


def save_config(config: Config, path: str | Path) -> None:
    """Writes every key that belongs to the run; `--config PATH` runs it again."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    values["output"] = str(config.run_dir)
    kept = {key: value for key, value in values.items() if key not in LAUNCH_KEYS}
    Path(path).write_text(yaml.safe_dump(kept, sort_keys=False))

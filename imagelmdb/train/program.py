"""--export FILE: the trained model as a file that runs without this package.

check_export("model.onnx")                                   # before training: are its packages installed?
export_checkpoint(run_dir / "best.pt", "model.pt2", config)
torch.export.load("model.pt2").module()(images)              # images: normalised float32, any number
"""

import dataclasses
import importlib.util
from pathlib import Path

import torch

from imagelmdb.config import Config
from imagelmdb.errors import UserError
from imagelmdb.train.model import make_model


def check_export(path: str | Path) -> None:
    """UserError if the packages that write this kind of file are missing."""
    if Path(path).suffix == ".onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise UserError(f"--export {path} needs two packages: pip install onnx onnxscript")


def export_checkpoint(checkpoint: Path, path: str | Path, config: Config) -> None:
    """Write a .pt2 or .onnx file from the averaged weights, or from the plain ones if there are none.

    The outputs of a .pt2 file are compared with the model's.
    """
    check_export(path)
    if not checkpoint.exists():
        raise UserError(f"--export: there is no {checkpoint}; train first, or name the run with --output")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    # The export runs in one process on the CPU, where SyncBatchNorm does not work.
    config = dataclasses.replace(config, sync_bn=False, channels_last=False)
    model = make_model(config, classes=len(state["classes"]), device=torch.device("cpu"), fetch=False).eval()
    model.load_state_dict(state.get("ema") or state["model"])
    # Two images, because torch.export would treat a batch of one as a constant.
    images = torch.randn(2, 3, config.val_size, config.val_size)
    batch = torch.export.Dim("batch")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt2":
        program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
        found = torch.export.load(path).module()(images[:1])
        torch.testing.assert_close(found, model(images[:1]), rtol=1e-3, atol=1e-4)
        return
    torch.onnx.export(
        model,
        (images,),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )

"""--export FILE: a checkpoint's weights as a program of their own, without this package.

check_export("model.onnx")                                   # before training: are the packages there?
export_checkpoint(run_dir / "best.pt", "model.pt2", config)
torch.export.load("model.pt2").module()(images)              # normalised float32, any batch size
"""

import dataclasses
import importlib.util
from pathlib import Path

import torch

from imagelmdb.config import Config
from imagelmdb.errors import UserError
from imagelmdb.train.model import make_model


def check_export(path: str | Path) -> None:
    """UserError where a file of this kind cannot be written."""
    if Path(path).suffix == ".onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise UserError(f"--export {path} needs two packages: pip install onnx onnxscript")


def export_checkpoint(checkpoint: Path, path: str | Path, config: Config) -> None:
    """Writes path, .pt2 or .onnx, from the averaged weights if there are any, and checks its outputs."""
    check_export(path)
    if not checkpoint.exists():
        raise UserError(f"--export: there is no {checkpoint}; train first, or name the run with --output")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    # A single CPU exports: what speaks to other ranks or fetches weights is left out.
    config = dataclasses.replace(config, sync_bn=False, channels_last=False)
    model = make_model(config, classes=len(state["classes"]), device=torch.device("cpu"), fetch=False).eval()
    model.load_state_dict(state.get("ema") or state["model"])
    # Two images, since torch.export takes a batch of one for a constant.
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

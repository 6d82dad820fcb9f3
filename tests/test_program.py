"""--export and --profile write files that others can read without this package."""

import dataclasses
import gzip
import importlib.util
import json

import pytest
import torch

from imagelmdb.config import Config
from imagelmdb.errors import UserError
from imagelmdb.train.model import make_model
from imagelmdb.train.profile import SKIPPED_STEPS, Profiler
from imagelmdb.train.program import check_export, export_checkpoint

CPU = torch.device("cpu")
CONFIG = Config(arch="squeezenet1_1", val_size=64, sync_bn=True)
CLASSES = ["a", "b", "c"]


def save_checkpoint(path) -> torch.nn.Module:
    """A checkpoint whose average is the model returned, and whose weights are others."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, sync_bn=False)  # which needs GPUs; exporting does not
    model, average = (make_model(config, classes=3, device=CPU).eval() for _ in range(2))
    torch.save({"model": model.state_dict(), "ema": average.state_dict(), "classes": CLASSES}, path)
    return average


def test_an_exported_program_gives_the_averaged_models_outputs_at_any_batch_size(tmp_path):
    model = save_checkpoint(tmp_path / "best.pt")
    export_checkpoint(tmp_path / "best.pt", tmp_path / "out" / "model.pt2", CONFIG)
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 64, 64)
        torch.testing.assert_close(program(images), model(images), rtol=1e-4, atol=1e-5)


def test_an_exported_onnx_file_gives_the_averaged_models_outputs(tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    model = save_checkpoint(tmp_path / "best.pt")
    export_checkpoint(tmp_path / "best.pt", tmp_path / "model.onnx", CONFIG)
    from onnx.reference import ReferenceEvaluator

    images = torch.randn(3, 3, 64, 64)
    found = ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, {"images": images.numpy()})[0]
    torch.testing.assert_close(torch.tensor(found), model(images), rtol=1e-3, atol=1e-4)


def test_what_is_missing_for_an_export_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"there is no .*best\.pt"):
        export_checkpoint(tmp_path / "best.pt", tmp_path / "model.pt2", CONFIG)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_export("model.pt2")
    with pytest.raises(UserError, match="pip install onnx onnxscript"):
        check_export("model.onnx")


def test_a_profile_traces_its_steps_and_no_others(tmp_path):
    with Profiler(tmp_path, steps=3) as profiler:
        for step in range(SKIPPED_STEPS + 6):
            with torch.profiler.record_function(f"step_{step}_"):
                torch.ones(2).add(1)
            profiler.after_step()
            assert profiler.path.exists() == (step >= SKIPPED_STEPS + 2)
    trace = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))
    names = {event["name"] for event in trace["traceEvents"]}
    traced = [step for step in range(SKIPPED_STEPS + 6) if f"step_{step}_" in names]
    assert traced == [SKIPPED_STEPS, SKIPPED_STEPS + 1, SKIPPED_STEPS + 2]


def profile_steps(folder, *, steps, taken):
    with Profiler(folder, steps=steps) as profiler:
        for _ in range(taken):
            torch.ones(2).add(1)
            profiler.after_step()
    return profiler.path.exists()


def test_a_run_that_ends_early_still_has_its_trace(tmp_path, capsys):
    assert profile_steps(tmp_path, steps=100, taken=SKIPPED_STEPS + 2)
    assert "no trace" not in capsys.readouterr().out


def test_without_steps_to_profile_there_is_no_trace(tmp_path, capsys):
    assert not profile_steps(tmp_path, steps=0, taken=10)
    assert "no trace" not in capsys.readouterr().out


@pytest.mark.parametrize("taken", [0, 1, SKIPPED_STEPS - 1])
def test_a_run_too_short_for_a_trace_says_so(tmp_path, capsys, taken):
    assert not profile_steps(tmp_path, steps=3, taken=taken)
    assert "--profile: no trace" in capsys.readouterr().out

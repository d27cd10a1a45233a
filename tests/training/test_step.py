"""One step: its number type, what it leaves out, when its values are read and what they say."""

import json
import logging
import math

import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from knet.config import get_cfg_from_file
from knet.errors import UserError
from knet.training import step as step_module
from knet.training.step import TrainStep, autocast_dtype, computes_in_bfloat16
from knet.training.trainer import Trainer

from ..processes import call_in_two


class Loss(torch.nn.Module):
    """Its loss is (weight · batch)²."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, batch):
        return {"loss_a": (self.weight * batch) ** 2, "loss_b": 0 * self.weight}


def make(batches, *, scaler=None, fused=True):
    model = Loss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5, fused=fused)
    values = [torch.tensor(float(value)) for value in batches]
    step = TrainStep(model, lambda seed, first: values[first:], optimizer, seed=0, clip_norm=1.0)
    if scaler is not None:
        step.grad_scaler = scaler
    return step


def run(step, count):
    """The weight after each step."""
    weights = []
    for step.iter in range(count):
        step.run_step()
        weights.append(step.model.weight.item())
    return weights


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_stay_as_before_the_first_broken_step(bad, fused):
    step = make([1, 2, bad, 3, bad], fused=fused)
    weights = run(step, 5)
    # also in later steps, which are not broken themselves
    assert weights[0] != weights[1] == weights[2] == weights[3] == weights[4]
    moments = step.optimizer.state[step.model.weight]
    assert moments["step"] == 2 and moments["exp_avg"].isfinite()
    message = (
        r"losses became .*'loss_a': (nan|inf)}, at step 3; the weights are as before this step"
    )
    for _ in range(2):  # nobody gets past it
        with pytest.raises(FloatingPointError, match=message):
            step.require_finite()
    with EventStorage(4) as storage, pytest.raises(FloatingPointError, match=message):
        step.flush_metrics()
    assert [i for _, i in storage.history("total_loss").values()] == [0, 1]


def test_gradients_that_overflow_stop_a_training_in_float32():
    step = make([1, 1])
    step.model.weight.register_hook(lambda gradient: gradient * math.inf)
    run(step, 2)
    with pytest.raises(FloatingPointError, match=r"gradient norm became inf .* finite, at step 1"):
        step.require_finite()


def test_gradients_of_float16_that_overflow_halve_the_scale():
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    step = make([1] * 6, scaler=scaler)
    overflow = [False, True, False, True, True, True]
    step.model.weight.register_hook(
        lambda gradient: gradient * (math.inf if overflow[step.iter] else 1)
    )
    first, second, third, fourth, fifth, _ = run(step, 6)
    assert first == second != third == fourth == fifth
    assert scaler.get_scale() == 0.25
    with EventStorage(5) as storage, pytest.raises(FloatingPointError, match=r"inf .* at step 6"):
        step.flush_metrics()
    # losses of the steps that were left out; their norms are none
    assert len(storage.history("loss_a").values()) == 5
    assert [i for _, i in storage.history("grad_norm").values()] == [0, 2]


def test_a_norm_that_overflows_alone_is_no_matter_of_the_scale():
    step = make([1] * 2, scaler=torch.amp.GradScaler("cpu", init_scale=1.0))
    more = step.model.more = torch.nn.ParameterList([torch.zeros(()), torch.zeros(())])
    step.model.forward = lambda batch: {"loss": 3e38 * (step.model.weight + sum(more))}
    step.optimizer = torch.optim.AdamW(step.model.parameters(), lr=0.1, fused=True)
    run(step, 1)
    with pytest.raises(FloatingPointError, match=r"gradient norm became inf .* at step 1"):
        step.require_finite()


class Square(torch.nn.Module):
    """The square of a weight and what a batch adds to it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, more):
        return {"loss": self.weight**2 + more}


def _five_steps(folder):
    """The second process's loss is infinite in the third step, with a finite gradient."""
    rank = comm.get_rank()
    batches = [0.0, 0.0, float("inf") if rank else 0.0, 0.0, 0.0]
    model = DistributedDataParallel(Square())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    step = TrainStep(model, lambda seed, first: batches[first:], optimizer, seed=0)
    weights = []
    for step.iter in range(len(batches)):
        step.run_step()
        weights.append(model.module.weight.item())
    with pytest.raises(FloatingPointError) as error:
        step.require_finite()
    (folder / f"{rank}.json").write_text(json.dumps([weights, str(error.value)]))


@pytest.mark.slow
def test_processes_leave_out_the_same_steps(tmp_path):
    call_in_two(_five_steps, tmp_path)
    (weights, first), (others, second) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    assert weights == others and weights[1] != weights[0]
    assert weights[1] == weights[2] == weights[3] == weights[4]
    assert first.startswith("losses of another process became infinite or NaN, at step 3; the")
    assert second.startswith("losses became infinite or NaN: {'loss': inf}, at step 3; the weights")


def _step_with_idle_weights():
    model = Loss()
    model.stage = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model = DistributedDataParallel(model)
    TrainStep(model, lambda seed, first: [torch.tensor(1.0)], optimizer, seed=0).run_step()


def test_a_parameter_that_no_loss_needs_is_named_in_the_first_step():
    with pytest.raises(
        UserError, match=r"^stage\.weight, stage\.bias: no loss depends on them.*IN_F"
    ):
        call_in_two(_step_with_idle_weights)


def test_metrics_before_a_failure_are_kept(tiny_cfg, tmp_path):
    tiny_cfg.OUTPUT_DIR = str(tmp_path)
    tiny_cfg.DATASETS.TEST = ()
    trainer = Trainer(tiny_cfg)
    trainer.resume_or_load(resume=False)
    run_step, told = trainer._trainer.run_step, []

    def fourth_fails():
        if trainer.iter == 3:
            raise ZeroDivisionError("in the fourth step")
        run_step()

    trainer._trainer.run_step = fourth_fails
    after_train = TrainerBase.after_train
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(
            TrainerBase,
            "after_train",
            lambda self: (
                told.extend(self.storage.history("total_loss").values()) or after_train(self)
            ),
        )
        trainer.train()
    assert [iteration for _, iteration in told] == [0, 1, 2]


def test_metrics_belong_to_their_steps():
    step = make([1, 2, 3])
    with EventStorage(2) as storage:
        run(step, 2)
        step.flush_metrics()
        step.flush_metrics()  # nothing is left
        step.iter = 2
        step.run_step()
        step.flush_metrics()
        assert storage.iter == 2
    expected = [(1.0, 0), (4 * 0.9**2, 1), (9 * 0.8**2, 2)]
    for name in ("total_loss", "loss_a"):
        values = storage.history(name).values()
        assert [i for _, i in values] == [0, 1, 2] and values[0] == expected[0]
    assert storage.latest()["loss_b"] == (0.0, 2) and "data_time" in storage.latest()
    assert storage.history("grad_norm").values()[0] == pytest.approx((2.0, 0))


class _NoReads(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        assert name not in {"cpu", "tolist", "numpy", "item", "__bool__", "__float__"}, name
        return func(*args, **(kwargs or {}))


class _NoWaits(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name not in ("aten::_local_scalar_dense", "aten::nonzero")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu")])
def test_no_value_of_a_step_is_looked_at(scaler):
    step = make([1] * 3, scaler=scaler)
    for step.iter in range(3):
        with _NoReads(), _NoWaits():
            step.run_step()
    step.require_finite()
    with pytest.raises(AssertionError), _NoReads():
        step.require_finite()


def test_no_checkpoint_follows_a_broken_step(tiny_cfg, tmp_path):
    tiny_cfg.OUTPUT_DIR = str(tmp_path)
    tiny_cfg.DATASETS.TEST = ()
    tiny_cfg.SOLVER.CHECKPOINT_PERIOD = 2
    tiny_cfg.SOLVER.CHECKPOINT_MINUTES = 0.0
    trainer = Trainer(tiny_cfg)
    trainer.resume_or_load(resume=False)
    run_step = trainer._trainer.run_step
    weight = trainer.model.heads.rounds[2].mask_predictor.bias

    def broken_third_step():
        hook = trainer.iter == 2 and weight.register_hook(lambda gradient: gradient * math.nan)
        run_step()
        if hook:
            hook.remove()

    trainer._trainer.run_step = broken_third_step
    with pytest.raises(FloatingPointError, match=r"gradient norm became nan .* at step 3; the"):
        trainer.train()
    assert trainer.iter == 3  # where the next checkpoint was due
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000001.pth"]
    saved = torch.load(tmp_path / "model_0000001.pth", weights_only=False)["model"]
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, saved[name]), name


@pytest.fixture
def mixed_cfg():
    cfg = get_cfg_from_file("configs/plus/nuclei_instance.yaml", ["MODEL.DEVICE", "cpu"])
    assert cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "auto"
    return cfg


@pytest.mark.parametrize(
    "on_cpu, on_gpu, device, dtype, reason",
    [
        (True, None, "cpu", torch.bfloat16, "the processor has instructions for it"),
        (False, None, "cpu", None, "float32, since the processor has no instructions"),
        (None, True, "cuda", torch.bfloat16, "the GPU computes in it"),
        (None, False, "cuda:0", torch.float16, "too old for bfloat16"),
        (None, None, "mps", None, "nothing is known"),
    ],
)
def test_auto_is_what_is_fast(
    mixed_cfg, monkeypatch, caplog, on_cpu, on_gpu, device, dtype, reason
):
    mixed_cfg.MODEL.DEVICE = device
    monkeypatch.setattr(step_module, "computes_in_bfloat16", lambda: on_cpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: on_gpu)
    with caplog.at_level(logging.INFO):
        assert autocast_dtype(mixed_cfg) is dtype
    (record,) = caplog.records
    assert reason in record.getMessage()


def test_kernels_of_an_older_processor_have_no_bfloat16(monkeypatch):
    monkeypatch.setattr(step_module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    for isa, expected in [("", True), ("AVX2", False), ("AVX512_CORE", False),
                          ("avx512_core_bf16", True), ("AVX512_CORE_AMX", True)]:  # fmt: skip
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
        assert computes_in_bfloat16() is expected, isa


def test_named_types(mixed_cfg, monkeypatch, caplog):
    monkeypatch.setattr(step_module, "computes_in_bfloat16", lambda: False)
    mixed_cfg.SOLVER.AMP.DTYPE = "bfloat16"
    assert autocast_dtype(mixed_cfg) is torch.bfloat16
    assert "has no instructions for it" in caplog.text
    mixed_cfg.SOLVER.AMP.DTYPE = "float16"
    with pytest.raises(ValueError, match="float16 needs a GPU"):
        autocast_dtype(mixed_cfg)
    mixed_cfg.MODEL.DEVICE = "cuda"
    assert autocast_dtype(mixed_cfg) is torch.float16
    mixed_cfg.SOLVER.AMP.ENABLED = False
    assert autocast_dtype(mixed_cfg) is None

"""`GradNormCallback` trains as a plain loop does: real runs of `Trainer` on the CPU, in every setting it knows."""

import contextlib
import copy
import importlib
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

import gradnorm
from gradnorm import ArgumentError, GradNorm
from gradnorm._history import FIELDS
from gradnorm.lightning import _WATCHED, GradNormCallback, watch

from ..distributed.launch import WORLD, launch

STEPS = 6
BATCH = 4


class Net(LightningModule):
    """Two tasks of unlike scale behind one trunk, whose last layer is `W`."""

    def __init__(self, optimizer=torch.optim.Adam, lr=1e-2):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.near, self.far = nn.Linear(8, 1), nn.Linear(8, 1)
        self.balancer = GradNorm(["near", "far"], shared=self.trunk[2])
        self.make, self.lr = optimizer, lr

    def losses(self, x):
        features = self.trunk(x)
        near, far = self.near(features), self.far(features)
        return {"near": (near - 1).float().square().mean(), "far": 30 * (far - x[:, :1]).float().square().mean()}

    def training_step(self, x, batch_idx):
        return self.balancer(self.losses(x))

    def configure_optimizers(self):
        return self.make([*self.trunk.parameters(), *self.near.parameters(), *self.far.parameters()], lr=self.lr)


def data(count=STEPS * BATCH):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(1))


def loader(rows=None, size=BATCH):
    return DataLoader(data() if rows is None else rows, batch_size=size)


def trainer_of(*callbacks, callback=None, **kwargs):
    settings = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=[callback or GradNormCallback(), *callbacks], **(settings | kwargs))


def fitted(net=None, rows=None, size=BATCH, **kwargs):
    net = net or Net()
    trainer_of(**kwargs).fit(net, loader(rows, size))
    return net


def plain(net=None, rows=None, size=BATCH, clip=None, bf16=False, scaler=None, epochs=1):
    """The loop of the README."""
    net = net or Net()
    optimizer = net.configure_optimizers()
    for x in [x for _ in range(epochs) for x in loader(rows, size)]:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = net.balancer(net.losses(x))
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        net.balancer.step()
    return net


def test_a_monitor_takes_the_balancers_place(tmp_path):
    net = Net()
    net.balancer = gradnorm.monitor(["near", "far"], every=2)
    logger = CSVLogger(tmp_path)
    fitted(net, logger=logger)
    assert net.balancer.weights.tolist() == [1.0, 1.0]
    assert net.balancer.history.steps == list(range(0, STEPS, 2))
    assert "gradnorm/share/near" in (Path(logger.log_dir) / "metrics.csv").read_text()


class Watched(Net):
    """Measured by one line; the balancer of `Net` is not used."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def training_step(self, x, batch_idx):
        return watch(self, self.losses(x), **{"every": 2, **self.options})

    validation_step = training_step


class Summed(Net):
    def training_step(self, x, batch_idx):
        return torch.stack([*self.losses(x).values()]).sum()


def fit_watched(net, logger=False):
    trainer_of(callback=Callback(), logger=logger).fit(net, loader(), loader())
    return _WATCHED[net].monitor


def test_a_watched_module_trains_and_is_saved_as_one_that_returns_the_sum():
    net, summed = Watched(), fitted(Summed())
    monitor = fit_watched(net)
    assert monitor.history.steps == list(range(0, STEPS, 2))
    assert monitor.shared_names == ("trunk.2.weight",)
    assert net.state_dict().keys() == summed.state_dict().keys()
    torch.testing.assert_close(net.state_dict(), summed.state_dict(), rtol=0, atol=0)


def test_what_is_watched_is_logged_beside_what_the_module_logs(tmp_path):
    kept, logger = {}, CSVLogger(tmp_path)
    logger.log_metrics = lambda metrics, step=None: kept.setdefault(step, {}).update(metrics)
    monitor = fit_watched(Watched(), logger)
    logged = {name: value for name, value in kept[5].items() if name.startswith("gradnorm/")}
    assert logged == pytest.approx(monitor.log_dict(), rel=1e-6)
    assert {"gradnorm/norm/near", "gradnorm/share/far", "gradnorm/cosine/near/far"} <= set(kept[5])
    assert "gradnorm/norm/near" not in kept.get(0, {})  # nothing is known before the first step


def test_another_fit_continues_with_the_same_monitor_and_one_optimizer():
    net = Watched()
    first = fit_watched(net)
    assert fit_watched(net) is first
    assert len(first.history) == STEPS
    assert copy.deepcopy(net) not in _WATCHED


def test_another_fit_with_other_options_has_a_monitor_of_its_own():
    net = Watched()
    first = fit_watched(net)
    net.options = {**net.options, "every": 3}
    second = fit_watched(net)
    assert (first.every, second.every) == (2, 3)
    assert second.history.steps == list(range(0, STEPS, 3))
    assert first.history.steps == list(range(0, STEPS, 2))


def test_a_task_that_a_batch_lacks_is_watched_as_absent():
    class Lacks(Watched):
        def losses(self, x):
            return {**super().losses(x), "far": None}

    monitor = fit_watched(Lacks(shared=None))
    assert set(monitor.tasks) == {"near", "far"}


def test_validation_takes_what_training_takes_and_no_loss_at_all():
    class Shaped(Watched):
        def losses(self, x):
            found = super().losses(x)
            return {**found, "far": found["far"].reshape(1)}

    class Lacks(Watched):
        def losses(self, x):
            found = super().losses(x)
            return found if self.training else dict.fromkeys(found)

    assert fit_watched(Shaped()).history.steps == fit_watched(Lacks()).history.steps == list(range(0, STEPS, 2))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it
def test_a_compiled_module_is_watched_in_every_step():
    torch._dynamo.reset()
    net = Watched()
    trainer_of(callback=Callback(), logger=False).fit(torch.compile(net, backend="eager"), loader(), loader())
    assert _WATCHED[net].monitor.history.steps == list(range(0, STEPS, 2))


def test_watching_asks_for_the_optimizer_where_there_are_several():
    class Two(Watched):
        automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=1e-2) for part in (self.trunk, self.near)]

    with pytest.raises(ArgumentError, match="training has 2 optimizers"):
        fit_watched(Two())
    assert fit_watched(Two(optimizer=0)).tasks == ("near", "far")


def assert_same(one, other, rtol=0.0, atol=0.0):
    assert one.balancer.weights[0] > 1.02, "the weights must have moved for this to mean anything"
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=rtol, atol=atol)
    torch.testing.assert_close(measured(one), measured(other), rtol=rtol, atol=atol)


def measured(net):
    """Loss, weight, norm, target and rate, a row a step and task."""
    return torch.tensor([[row[field] for field in FIELDS] for row in net.balancer.history.rows()])


SETTINGS = {
    "plain": ({}, {}),
    "clipping": ({"gradient_clip_val": 0.1}, {"clip": 0.1}),
    "bf16-mixed": ({"precision": "bf16-mixed"}, {"bf16": True}),
    "inference mode off": ({"inference_mode": False}, {}),
    "two epochs": ({"max_epochs": 2}, {"epochs": 2}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_it_trains_as_a_plain_loop(name):
    theirs, ours = SETTINGS[name]
    assert_same(fitted(**theirs), plain(**ours))


def test_an_optimizer_that_evaluates_several_times_a_step():
    net = Net(torch.optim.LBFGS, lr=0.1)
    optimizer = net.configure_optimizers()
    for x in loader():

        def closure(x=x):
            optimizer.zero_grad()
            loss = net.balancer(net.losses(x))
            loss.backward()
            return loss

        optimizer.step(closure)
        net.balancer.step()
    ours = fitted(Net(torch.optim.LBFGS, lr=0.1))
    assert len(measured(ours)) == 2 * STEPS
    torch.testing.assert_close(measured(ours), measured(net), rtol=0, atol=0)
    torch.testing.assert_close(ours.state_dict(), net.state_dict(), rtol=0, atol=0)


def test_accumulating_four_batches_is_one_of_four_times_the_size():
    rows = data(4 * STEPS * BATCH)
    # SGD, since Adam would hide a gradient of four times the size.
    ours = fitted(Net(torch.optim.SGD, lr=1e-3), rows, accumulate_grad_batches=4)
    theirs = plain(Net(torch.optim.SGD, lr=1e-3), rows, size=4 * BATCH)
    assert_same(ours, theirs, rtol=1e-4, atol=1e-5)


class Overflows(Net):
    """The loss of its third step is infinite in float16's sense: a scaler skips it."""

    def training_step(self, x, batch_idx):
        loss = super().training_step(x, batch_idx)
        return loss * float("inf") if batch_idx == 2 else loss


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_are_no_steps(fused):
    def optimizer(parameters, lr):
        return torch.optim.Adam(parameters, lr, fused=fused)

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ours = fitted(Overflows(optimizer), plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    assert scaler.get_scale() == 512, "one step was skipped"
    theirs = Net(optimizer)
    adam = theirs.configure_optimizers()
    for step, x in enumerate(loader()):
        if step == 2:
            continue
        with torch.autocast("cpu", torch.float16):
            loss = theirs.balancer(theirs.losses(x))
        adam.zero_grad()
        (loss * (1024 if step < 2 else 512)).backward()
        for parameter in theirs.parameters():
            parameter.grad /= 1024 if step < 2 else 512
        adam.step()
        theirs.balancer.step()
    torch.testing.assert_close(ours.balancer.weights, theirs.balancer.weights, rtol=0, atol=0)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), parameter, rtol=1e-5, atol=1e-6)


class Validated(Net):
    def validation_step(self, x, batch_idx):
        assert not self.balancer.training
        self.log("validated", self.balancer(self.losses(x)))


def test_validation_and_the_sanity_check_leave_training_as_it_is():
    net = Validated()
    trainer = trainer_of(val_check_interval=2, num_sanity_val_steps=2)
    trainer.fit(net, loader(), loader())
    assert "validated" in trainer.callback_metrics
    assert net.balancer.training
    assert_same(net, plain())


def test_a_second_fit_goes_on_with_one_hook():
    net, trainer = Net(), trainer_of()
    trainer.fit(net, loader())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(net, loader())
    assert len(net.balancer.history) == 2 * STEPS
    assert [row["step"] for row in net.balancer.history.rows()][::2] == list(range(2 * STEPS))


class Hooks(Callback):
    """Counts what hangs on the optimizer while training runs; raises at `stop`."""

    def __init__(self, stop=None):
        self.stop, self.seen = stop, set()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.optimizer = trainer.optimizers[0]
        self.seen.add(len(self.optimizer._optimizer_step_post_hooks))
        if trainer.global_step == self.stop:
            raise RuntimeError("stop")


@pytest.mark.parametrize("stop", [None, 3])
def test_nothing_stays_on_the_optimizer(stop):
    hooks = Hooks(stop)
    with pytest.raises(RuntimeError, match="stop") if stop else contextlib.nullcontext():
        trainer_of(hooks).fit(Net(), loader())
    assert hooks.seen == {2}
    assert not hooks.optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("scaled", [False, True])
def test_interrupted_and_resumed_is_uninterrupted(scaled, tmp_path):
    def trainer(epochs):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler=scaler)] if scaled else None
        return trainer_of(max_epochs=epochs, plugins=plugins)

    straight, resumed = Net(), Net()
    trainer(2).fit(straight, loader())
    first = trainer(1)
    first.fit(Net(), loader())
    first.save_checkpoint(tmp_path / "saved.ckpt")
    with torch.no_grad():
        resumed.trunk[2].weight.zero_()
    trainer(2).fit(resumed, loader(), ckpt_path=tmp_path / "saved.ckpt")
    assert straight.balancer.weights[0] > 1.02
    torch.testing.assert_close(resumed.state_dict(), straight.state_dict(), rtol=0, atol=0)
    assert len(measured(resumed)) == 2 * STEPS
    torch.testing.assert_close(measured(resumed), measured(straight)[-2 * STEPS :], rtol=0, atol=0)


def test_figures_are_logged_where_lightning_logs_its_own(tmp_path):
    kept = []

    class Spy(CSVLogger):
        def log_metrics(self, metrics, step=None):
            kept.append((step, dict(metrics)))

    class Logs(Net):
        def training_step(self, x, batch_idx):
            self.log("own", 1.0)
            return super().training_step(x, batch_idx)

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer)]

    net = Logs()
    monitor = LearningRateMonitor("step")
    trainer = trainer_of(
        monitor, logger=[CSVLogger(tmp_path), Spy(tmp_path)], log_every_n_steps=2, accumulate_grad_batches=2
    )
    trainer.fit(net, loader(data(2 * STEPS * BATCH)))
    own = [step for step, metrics in kept if "own" in metrics]
    rates = [step for step, metrics in kept if "lr-Adam" in metrics]
    ours = {step: metrics for step, metrics in kept if "gradnorm/skipped" in metrics}
    assert list(ours) == own == sorted(set(rates)) == [1, 3, 5]
    assert ours[5] == net.balancer.log_dict()
    rows = net.balancer.history.rows()
    for step, metrics in ours.items():
        for row in rows[2 * step : 2 * step + 2]:
            for field in ("loss", "weight", "norm", "rate"):
                assert metrics[f"gradnorm/{field}/{row['task']}"] == row[field]
    assert "gradnorm/weight/near" in (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()[0]


class Manual(Net):
    """Trunk and heads have an optimizer each, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, x, batch_idx):
        trunk, heads = self.optimizers()
        trunk.zero_grad()
        heads.zero_grad()
        self.manual_backward(self.balancer(self.losses(x)))
        heads.step()
        trunk.step()

    def configure_optimizers(self):
        heads = [*self.near.parameters(), *self.far.parameters()]
        return [torch.optim.Adam(self.trunk.parameters(), 1e-2), torch.optim.Adam(heads, 1e-2)]


def test_manual_optimization_with_two_optimizers():
    assert_same(fitted(Manual(), callback=GradNormCallback(optimizer=0)), plain())


class Two(Net):
    """Trains with the second of its balancers."""

    def __init__(self):
        super().__init__()
        self.other, self.balancer = self.balancer, GradNorm(2)

    def training_step(self, x, batch_idx):
        return self.other(self.losses(x))


class Hidden(Net):
    """Keeps its balancer where no checkpoint finds it."""

    def __init__(self):
        super().__init__()
        balancer = self.balancer
        del self.balancer
        self.held = [balancer]


@pytest.mark.parametrize("named", [lambda net: "other", lambda net: net.other], ids=["by name", "itself"])
def test_of_several_balancers_the_one_that_was_named_steps(named):
    net = Two()
    fitted(net, callback=GradNormCallback(named(net)))
    assert torch.equal(net.other.weights, plain().balancer.weights)


def test_errors_name_the_remedy():
    with pytest.raises(ArgumentError, match=r"Hidden holds no GradNorm; make one in its __init__"):
        fitted(Hidden())
    hidden = Hidden()
    with pytest.raises(ArgumentError, match=r"balancer is a balancer, which Hidden does not hold .*make the balancer"):
        fitted(hidden, callback=GradNormCallback(hidden.held[0]))
    with pytest.raises(ArgumentError, match=r"balancer is 'weights', which Net does not hold \(it holds 'balancer'\)"):
        fitted(callback=GradNormCallback("weights"))
    with pytest.raises(ArgumentError, match=r"several balancers, 'balancer', 'other'; .*balancer=name"):
        fitted(Two())
    with pytest.raises(ArgumentError, match=r"2 optimizers \(0: Adam, 1: Adam\); .*optimizer=0"):
        fitted(Manual())
    with pytest.raises(ArgumentError, match=r"optimizer is 2, and training has 2 optimizers"):
        fitted(Manual(), callback=GradNormCallback(optimizer=2))


def test_without_lightning_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "gradnorm.lightning")
    with pytest.raises(ImportError, match=r'pip install "gradnorm\[lightning\]"'):
        importlib.import_module("gradnorm.lightning")


# ------------------------------------------------------------------------------------------------- two processes


class Environment(LightningEnvironment):
    """Processes that somebody else has started, and whose process group is there already."""

    creates_processes_externally = True

    def __init__(self, rank):
        super().__init__()
        self.set_global_rank(rank)
        self._local = rank

    def local_rank(self):
        return self._local

    def world_size(self):
        return WORLD


def in_ddp(rank, options):
    net = Net(torch.optim.SGD, lr=1e-3)
    strategy = DDPStrategy(cluster_environment=Environment(rank), process_group_backend="gloo", **options)
    # Each rank takes every second batch, so that the two batches of a step are the joint one.
    rows = data().view(STEPS, WORLD, -1, 6)[:, rank].reshape(-1, 6)
    trainer = trainer_of(strategy=strategy, devices=WORLD, use_distributed_sampler=False)
    trainer.fit(net, loader(rows, BATCH // WORLD))
    return {"state": net.state_dict(), "weights": net.balancer.weights, "world": trainer.world_size}


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
def test_two_processes_hold_the_weights_of_one_on_the_joint_batch(options, tmp_path):
    first, second = launch(in_ddp, tmp_path / "run", options)
    assert first["world"] == WORLD
    assert torch.equal(first["weights"], second["weights"])
    alone = fitted(Net(torch.optim.SGD, lr=1e-3))
    assert alone.balancer.weights[0] > 1.02
    for rank in (first, second):
        torch.testing.assert_close(rank["state"], alone.state_dict(), rtol=1e-5, atol=1e-6)

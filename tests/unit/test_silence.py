"""A run in which nothing is balanced says so once, with its cause; a run that is about to balance is left alone."""

import copy
import io
import pickle
import re
import subprocess
import sys
import warnings

import pytest
import torch

from gradnorm import Descent, GradNorm, GraphError, StateError
from gradnorm._errors import warn

from .networks import Net, batch, cpu_only

NAMES = ["a", "b", "c"]
MORE = 130
"""Losses, somewhat more than after which an update is missed."""


class Run:
    """A training loop, each part of which a test may leave out or replace."""

    def __init__(self, attach=True, **options):
        self.net = Net()
        self.balancer = GradNorm(NAMES, **{"shared": self.net.last, **options})
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-4)
        self.handle = self.balancer.attach(self.optimizer) if attach else None

    def losses(self, step):
        return self.net.losses(batch(step))

    def backward(self, step):
        self.balancer(self.losses(step)).backward()

    def step(self):
        self.optimizer.step()

    def train(self, steps=MORE):
        """What was said in the meantime."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for step in range(steps):
                self.optimizer.zero_grad()
                self.backward(step)
                self.step()
        return [str(each.message) for each in said if each.category is RuntimeWarning]


class StepForgotten(Run):
    cause = "step() was not called"

    def __init__(self):
        super().__init__(attach=False)


class StepForgottenInBranches(StepForgotten):
    """`W` is not known, so that only the number of losses tells."""

    steps = 1700

    def __init__(self):
        Run.__init__(self, attach=False, at="branches", shared=None)

    def losses(self, step):
        features = self.balancer.branch(self.net.trunk(batch(step)))
        return {name: head(x).square().mean() for (name, head), x in zip(self.net.named(), features, strict=True)}


class GradientsKeptAsZeros(StepForgotten):
    def train(self, steps=MORE):
        self.optimizer.zero_grad = lambda: torch.optim.Optimizer.zero_grad(self.optimizer, set_to_none=False)
        return super().train(steps)


class CopyOfAnAttached(StepForgotten):
    def __init__(self):
        Run.__init__(self)
        super().train(3)
        self.net, self.balancer = copy.deepcopy((self.net, self.balancer))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-4)


class AnotherOptimizerSteps(Run):
    """SAM, say, whose base optimizer steps."""

    cause = "it was attached to Adam, whose step() has not completed"

    def __init__(self):
        super().__init__(attach=False)
        self.sam = torch.optim.Adam(self.net.parameters())
        self.balancer.attach(self.sam)


class OptimizerGone(AnotherOptimizerSteps):
    def __init__(self):
        super().__init__()
        del self.sam


class InEval(Run):
    cause = "the balancer is in eval()"

    def __init__(self, **options):
        super().__init__(**options)
        self.balancer.eval()


class InEvalByHand(InEval):
    def __init__(self):
        super().__init__(attach=False)

    def step(self):
        super().step()
        self.balancer.step()


class LoadedFrozen(Run):
    cause = "it is frozen, as the state_dict that it loaded was"

    def __init__(self):
        super().__init__()
        other = GradNorm(NAMES).freeze()
        self.balancer.load_state_dict(other.state_dict())


class OneTaskPerBatch(Run):
    cause = "each step measured one task"

    def losses(self, step):
        name = NAMES[step % 3]
        return {name: super().losses(step)[name]}


class OneTaskWhenMeasured(Run):
    """Batches hold one task in turn, and each second is measured."""

    cause = "no task but a has been measured"

    def __init__(self):
        super().__init__(every=2)

    def losses(self, step):
        name = "ab"[step % 2]
        return {name: super().losses(step)[name]}


class OneTaskAtAll(Run):
    cause = "no task but a has been measured"

    def __init__(self):
        super().__init__(update="closed-form")

    def losses(self, step):
        return {"a": super().losses(step)["a"]}


class TaskThatNeverComes(Run):
    cause = "detected once every task has been seen, and c has not"

    def __init__(self):
        super().__init__(shared=None)

    def losses(self, step):
        return super().losses(step) | {"c": None}


class EveryStepSkipped(Run):
    cause = "was skipped, since the loss of b or"

    def losses(self, step):
        losses = super().losses(step)
        return losses | {"b": losses["b"] - losses["b"].detach() - 1}


class ScalerSkipsEveryStep(Run):
    cause = "the gradients at W are not finite"

    def __init__(self):
        super().__init__()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        self.factor = torch.inf

    def backward(self, step):
        (self.scaler.scale(self.balancer(self.losses(step))) * self.factor).backward()

    def step(self):
        self.scaler.step(self.optimizer)
        self.scaler.update()


class ScalerSkipsOnTheDevice(Run):
    """As a fused optimizer, whose hooks run all the same."""

    cause = "the gradients at W are not finite"

    def __init__(self):
        super().__init__(attach=False)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-4, fused=True)
        self.balancer.attach(self.optimizer)

    def step(self):
        self.optimizer.found_inf = torch.tensor(1.0)
        super().step()


class BackwardElsewhere(Run):
    cause = "no backward has come through"

    def backward(self, step):
        losses = self.losses(step)
        self.balancer(losses)
        sum(losses.values()).backward()


class OneLongStep(Run):
    cause = "one step of LBFGS computes all of these losses"

    def __init__(self):
        super().__init__(attach=False)
        self.optimizer = torch.optim.LBFGS(self.net.parameters(), lr=1e-3, max_iter=300, tolerance_change=0)
        self.balancer.attach(self.optimizer)

    def train(self, steps=1):
        return super().train(1)

    def backward(self, step):
        pass

    def step(self):
        def closure():
            self.optimizer.zero_grad()
            loss = self.balancer(self.losses(0))
            loss.backward()
            return loss

        self.optimizer.step(closure)


class TinyRate(Run):
    cause = "the learning rate of the weights is 1e-09"

    def __init__(self):
        super().__init__(update=Descent(1e-9))


class NoGradient(Run):
    cause = "every gradient at W is exactly zero"

    def losses(self, step):
        return {name: 0 * loss + 1 for name, loss in super().losses(step).items()}


SILENT = [
    StepForgotten,
    StepForgottenInBranches,
    GradientsKeptAsZeros,
    CopyOfAnAttached,
    AnotherOptimizerSteps,
    OptimizerGone,
    InEval,
    InEvalByHand,
    LoadedFrozen,
    OneTaskPerBatch,
    OneTaskWhenMeasured,
    OneTaskAtAll,
    TaskThatNeverComes,
    EveryStepSkipped,
    ScalerSkipsEveryStep,
    ScalerSkipsOnTheDevice,
    BackwardElsewhere,
    OneLongStep,
    TinyRate,
    NoGradient,
]


def name_of(kind):
    return kind.__name__


@pytest.mark.parametrize("kind", SILENT, ids=name_of)
def test_a_run_without_an_update_names_the_cause_once(kind):
    run = kind()
    said = run.train(getattr(run, "steps", MORE)) + run.train(MORE)
    said = [text for text in said if text.startswith("GradNorm has balanced")]
    assert len(said) == 1
    assert run.cause in said[0]
    assert "balancer.freeze()" in said[0]


def test_it_is_said_after_a_hundred_losses():
    assert StepForgotten().train(99) == []
    assert StepForgotten().train(100)[0].startswith("GradNorm has balanced 100 losses and updated no weight:")


def test_the_question_is_put_off_while_first_losses_are_averaged():
    run = Run(update=Descent(1e-9), initial_losses=150, alpha=1.0)
    (said,) = run.train(250)
    assert said.startswith("GradNorm has balanced 200 losses")
    assert TinyRate.cause in said


# ------------------------------------------------------------------------------------------------- no longer balanced


class EvalKept(Run):
    """`train()` is forgotten after a validation."""

    cause = "the balancer is in eval()"

    def stop(self):
        self.balancer.eval()


class NewOptimizer(Run):
    cause = "it was attached to SGD, whose step() has not completed since"

    def stop(self):
        self.first, self.optimizer = self.optimizer, torch.optim.SGD(self.net.parameters(), lr=1e-4)


class Detached(Run):
    cause = "step() was not called"

    def stop(self):
        self.handle.remove()


class StepLost(Detached):
    def __init__(self):
        super().__init__(attach=False)
        self.is_lost = False

    def stop(self):
        self.is_lost = True

    def step(self):
        super().step()
        if not self.is_lost:
            self.balancer.step()


class AnotherLoss(Run):
    cause = "no backward has come through"

    def stop(self):
        self.backward = lambda step: (self.balancer(self.losses(step)), sum(self.losses(step).values()).backward())


class LoadedFrozenLater(Run):
    cause = "it is frozen, as the state_dict"

    def stop(self):
        self.balancer.load_state_dict(copy.deepcopy(self.balancer).freeze().state_dict())


class ScalerSkipsEachFurtherStep(ScalerSkipsEveryStep):
    def __init__(self):
        super().__init__()
        self.factor = 1

    def stop(self):
        self.factor = torch.inf


STOPPED = [EvalKept, NewOptimizer, Detached, StepLost, AnotherLoss, LoadedFrozenLater, ScalerSkipsEachFurtherStep]


@pytest.mark.parametrize("before", [1, 130])
@pytest.mark.parametrize("kind", STOPPED, ids=name_of)
def test_a_run_that_no_longer_balances_names_the_cause_once(kind, before):
    run = kind()
    assert run.train(before) == []
    run.stop()
    said = run.train(300)
    assert len(said) == 1
    assert run.cause in said[0]
    assert "since its last step" in said[0]
    assert run.train(300) == []


UNCHANGED = [  # options, and a number of steps that change no weight
    ({"update": "closed-form"}, 1),
    ({"update": "closed-form", "every": 50}, 40),
    ({"initial_losses": 20, "alpha": 1.0}, 10),
    ({"initial_losses": 200, "alpha": 1.0}, 100),
]


@pytest.mark.parametrize(("options", "steps"), UNCHANGED)
def test_a_stop_before_the_weights_have_changed_is_told(options, steps):
    run = Run(**options)
    assert run.train(steps) == []
    run.balancer.eval()
    (said,) = run.train(1000)
    assert EvalKept.cause in said
    assert f"updated for 1,000 balanced losses: {EvalKept.cause}" in run.balancer.report()


def test_a_second_stop_is_not_told_again():
    run = EvalKept()
    for stops in (1, 0):
        run.train(130)
        run.stop()
        assert len(run.train(130)) == stops
        assert f"for 130 balanced losses: {run.cause}" in run.balancer.report()
        run.balancer.train()


def test_a_stop_after_another_warning_is_told():
    run = StepForgotten()
    assert len(run.train(120)) == 1
    run.balancer.attach(run.optimizer)
    assert run.train(300) == []
    run.balancer.eval()
    assert len(run.train(300)) == 1
    assert EvalKept.cause in run.balancer.report()


def test_a_second_cause_is_told_though_no_weight_was_updated_between():
    run = EvalKept()
    run.stop()
    assert len(run.train(120)) == 1
    run.balancer.train()
    run.handle.remove()
    (said,) = run.train(300)
    assert StepForgotten.cause in said


def test_a_second_cause_is_told_though_no_step_came_between():
    run = StepForgotten()
    assert len(run.train(120)) == 1
    run.balancer.attach(torch.optim.Adam(run.net.parameters()))
    (said,) = run.train(300)
    assert "Adam" in said
    assert run.train(1000) == []


def test_a_report_on_weights_that_are_no_longer_updated_says_so():
    run = EvalKept()
    run.train(130)
    assert "No weight has been updated" not in run.balancer.report()
    run.stop()
    run.train(200)
    said = [text for text in run.balancer.report().advice if text.startswith("No weight has been updated for ")]
    assert said[0].startswith("No weight has been updated for 200 balanced losses: the balancer is in eval(),")
    assert not any("weights have converged" in text for text in run.balancer.report().findings)
    run.balancer.freeze()
    assert "No weight has been updated" not in run.balancer.report()
    run.balancer.unfreeze().train()
    run.train(20)
    assert "No weight has been updated" not in run.balancer.report()


class OneTaskLater(OneTaskPerBatch):
    def losses(self, step):
        return super().losses(step) if self.is_later else Run.losses(self, step)

    is_later = False

    def stop(self):
        self.is_later = True


class ScalerSkipsOnTheDeviceLater(ScalerSkipsOnTheDevice):
    def stop(self):
        self.step = super().step

    def step(self):
        Run.step(self)


@pytest.mark.parametrize("kind", [OneTaskLater, ScalerSkipsOnTheDeviceLater], ids=name_of)
def test_later_steps_without_effect_are_told(kind):
    run = kind()
    assert run.train(100) == []
    run.stop()
    said = run.train(700)
    assert len(said) == 1
    assert run.cause in said[0]
    assert run.cause in run.balancer.report()
    assert not any("weights have converged" in text for text in run.balancer.report().findings)


def test_a_stop_after_many_steps_is_told_within_two_questions(monkeypatch):
    monkeypatch.setattr("gradnorm._silence.RARELY", 200)
    run = OneTaskLater()
    run.train(700)
    run.stop()
    (said,) = run.train(510)
    assert "losses since a weight was last changed: each step measured one task" in said
    assert "balanced losses: each step measured one task" in run.balancer.report().advice[0]


@pytest.mark.parametrize("way", ["freeze", "load"])
def test_an_effect_is_asked_anew_after_a_phase(way):
    run = OneTaskLater()
    run.train(450)
    if way == "freeze":
        run.balancer.freeze()
        run.train(5)
        run.balancer.unfreeze()
    else:
        run.balancer.load_state_dict(run.balancer.state_dict())
    run.stop()
    (said,) = run.train(110)
    assert "GradNorm has balanced 100 losses since a weight was last changed" in said


class NeverTogether(Run):
    """Constant norms: the closed form's weights stay as they are, which is right."""

    def __init__(self):
        super().__init__(update="closed-form")
        self.optimizer.param_groups[0]["lr"] = 0.0

    def losses(self, step):
        return {name: self.net.losses(batch(0))[name] for name in self.tasks(step)}

    def tasks(self, step):
        return NAMES[step % 3]


class OftenTogether(NeverTogether):
    def tasks(self, step):
        return "abc" if step % 4 else "a"


@pytest.mark.parametrize("kind", [NeverTogether, OftenTogether], ids=name_of)
def test_constant_norms_are_no_fault(kind):
    run = kind()
    assert run.train(250) == []
    assert "No weight has been updated" not in run.balancer.report()


@pytest.mark.parametrize("update", ["descent", "closed-form"])
def test_a_task_that_never_comes_is_named_with_given_first_losses_too(update):
    run = Run(update=update, initial_losses=[1.0, 1.0, 1.0], alpha=1.0)
    run.losses = lambda step: {"a": run.net.losses(batch(step))["a"]}
    (said,) = run.train(150)
    assert OneTaskAtAll.cause in said


def test_a_report_before_the_next_measured_step_says_so():
    run = Run(every=100)
    run.train(150)
    other = Run(every=100)
    other.balancer.load_state_dict(run.balancer.state_dict())
    other.train(40)
    with pytest.raises(StateError, match="the next step that is measured, by every=, is still to come"):
        other.balancer.report()


def test_a_report_without_a_history_names_no_other_cause():
    run = Run(history=0)
    run.train(150)
    accumulate(run, 3, 4)
    with pytest.raises(StateError, match=r"no step is in the history: train first \(with history=0 none is kept\)"):
        run.balancer.report()


@pytest.mark.parametrize("kind", [StepForgotten, InEval], ids=name_of)
def test_a_report_without_a_step_names_the_cause(kind):
    run = kind()
    run.train()
    found = r"losses were balanced, and no weight was updated: .*" + re.escape(run.cause)
    with pytest.raises(StateError, match=found):
        run.balancer.report()


# ------------------------------------------------------------------------------------------------- about to balance


class Ordinary(Run):
    pass


class ByHand(Run):
    def __init__(self):
        super().__init__(attach=False)

    def step(self):
        super().step()
        self.balancer.step()


class Accumulation(Run):
    """150 micro-batches per step."""

    steps = 1000

    def train(self, steps=1000):
        self.optimizer.zero_grad, self.clear = (lambda: None), self.optimizer.zero_grad
        self.micro = 0
        return super().train(steps)

    def step(self):
        self.micro += 1
        if self.micro % 150 == 0:
            super().step()
            self.clear()


class AccumulationByHand(Accumulation):
    def __init__(self):
        super().__init__(attach=False)

    def step(self):
        super().step()
        if self.micro % 150 == 0:
            self.balancer.step()


class AccumulationOverflows(Accumulation):
    """The first step's loss scale is too large."""

    skipped = 0

    def backward(self, step):
        is_skipped = step // 150 == self.skipped
        (self.balancer(self.losses(step)) * (torch.inf if is_skipped else 1)).backward()

    def step(self):
        if self.micro == 150 * self.skipped + 149:
            self.micro += 1
            self.clear()
        else:
            super().step()


class AccumulationOverflowsLater(AccumulationOverflows):
    skipped = 1


class AccumulationOfADetectedLayer(Accumulation):
    """The first backward looks further up for `W`, which is another tensor from then on."""

    def __init__(self):
        super().__init__(shared=None)

    def losses(self, step):
        x = self.net.trunk(batch(step))
        y = torch.cat([head(x) for head in self.net.heads], 1)
        return {name: y[:, 2 * i].square().mean() for i, name in enumerate(NAMES)}


class ManyFirstLosses(Run):
    def __init__(self):
        super().__init__(initial_losses=250, alpha=1.0)


class RareTaskOfManyFirstLosses(ManyFirstLosses):
    def losses(self, step):
        losses = super().losses(step)
        return losses if step % 10 == 0 else {"a": losses["a"]}


class Rarely(Run):
    def __init__(self):
        super().__init__(every=1000)


class RarelyAndResumed(Rarely):
    def __init__(self):
        super().__init__()
        other = Rarely()
        other.train(3)
        self.balancer.load_state_dict(other.balancer.state_dict())


class FirstStepBad(Rarely):
    """The one step that is measured in a thousand has a loss that overflows."""

    def losses(self, step):
        return {name: loss if step else loss * torch.inf for name, loss in super().losses(step).items()}

    def train(self, steps=MORE):
        return [text for text in super().train(steps) if "left the loss weights unchanged" not in text]


class MissingTasks(Run):
    def losses(self, step):
        return super().losses(step) | {NAMES[step % 3]: None}


class TasksInTurnInClosedForm(OneTaskPerBatch):
    def __init__(self):
        Run.__init__(self, update="closed-form", initial_weights=None)


class Frozen(Run):
    def __init__(self):
        super().__init__()
        self.balancer.freeze()


class FrozenAndLoaded(LoadedFrozen):
    def __init__(self):
        super().__init__()
        self.balancer.freeze()


class Validation(Run):
    """Two hundred batches before training, in eval() without no_grad."""

    def __init__(self):
        super().__init__()
        self.balancer.eval()
        for step in range(200):
            self.balancer(self.losses(step))
        self.balancer.train()


class ValidationWhilePretraining(Run):
    """The network is trained without the balancer, whose loss is looked at in eval()."""

    def __init__(self):
        super().__init__(attach=False)
        self.balancer.eval()

    def backward(self, step):
        self.balancer(self.losses(step))
        sum(self.losses(step).values()).backward()


class ValidationInTraining(Run):
    """The same in training mode."""

    def __init__(self):
        super().__init__()
        for step in range(200):
            self.balancer(self.losses(step))


class ValidationWithoutGrad(InEval):
    @torch.no_grad()
    def backward(self, step):
        self.balancer(self.losses(step))


class RateAnnealedToZero(Run):
    def __init__(self):
        super().__init__()
        self.balancer.optimizer.param_groups[0]["lr"] = 0.0


class RateScheduledToNearZero(Run):
    steps = 900

    def __init__(self):
        super().__init__()
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.balancer.optimizer, 0.9)

    def step(self):
        super().step()
        self.scheduler.step()


class SolvedTasks(Run):
    """After some steps every loss is zero, and so is every gradient."""

    steps = 900

    def __init__(self):
        super().__init__(alpha=0.0)

    def losses(self, step):
        losses = super().losses(step)
        return losses if step < 50 else {name: 0 * loss for name, loss in losses.items()}


class EvenGradients(Run):
    def losses(self, step):
        return dict.fromkeys(NAMES, super().losses(step)["a"])


LEGITIMATE = [
    Ordinary,
    ByHand,
    Accumulation,
    AccumulationByHand,
    AccumulationOverflows,
    AccumulationOverflowsLater,
    AccumulationOfADetectedLayer,
    ManyFirstLosses,
    RareTaskOfManyFirstLosses,
    Rarely,
    RarelyAndResumed,
    FirstStepBad,
    MissingTasks,
    TasksInTurnInClosedForm,
    Frozen,
    FrozenAndLoaded,
    Validation,
    ValidationWhilePretraining,
    ValidationInTraining,
    ValidationWithoutGrad,
    RateAnnealedToZero,
    RateScheduledToNearZero,
    SolvedTasks,
    EvenGradients,
]


@pytest.mark.parametrize("kind", LEGITIMATE, ids=name_of)
def test_a_run_that_balances_or_is_about_to_is_never_warned(kind):
    run = kind()
    assert run.train(getattr(run, "steps", MORE)) == []


def accumulate(run, losses, micro_batches=1):
    """What was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(losses):
            run.backward(step)
            if step % micro_batches == micro_batches - 1:
                run.step()
                run.optimizer.zero_grad()
    return [str(each.message) for each in said]


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize(("begin", "end"), [("freeze", "unfreeze"), ("eval", "train")])
@pytest.mark.parametrize(("before", "phase", "micro_batches"), [(0, 95, 8), (0, 99, 1), (150, 95, 8), (150, 391, 16)])
def test_a_phase_of_constant_weights_does_not_count(before, phase, micro_batches, begin, end, attach):
    if begin == "eval" and phase > 100:
        pytest.skip("this long it may be a mistake")
    run = Ordinary() if attach else ByHand()
    assert run.train(before) == []
    getattr(run.balancer, begin)()
    assert accumulate(run, phase) == []
    getattr(run.balancer, end)()
    assert accumulate(run, 10 * micro_batches, micro_batches) == []


@pytest.mark.parametrize("before", [0, 120])
def test_any_number_of_micro_batches_is_one_step(before):
    run = Run()
    run.train(before)
    assert accumulate(run, 1700, 1700) == []


def test_an_overflow_before_a_validation_in_training_mode_is_one():
    run = Run()
    run.train(150)
    (run.balancer(run.losses(0)) * torch.inf).backward()
    run.optimizer.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(200):
            run.balancer(run.losses(step))


def test_a_state_that_is_loaded_begins_anew():
    """As on a server that loads `W` and the weights of another process in each round."""
    run = Run()
    run.train(150)
    for step in range(95):
        run.balancer(run.losses(step))
    with torch.no_grad():
        run.net.last.mul_(0.9)
    run.balancer.load_state_dict(run.balancer.state_dict())
    assert accumulate(run, 40, 8) == []


def test_a_report_after_a_part_of_a_state_was_loaded_says_nothing_of_the_run_before():
    net = Net()
    balancer = GradNorm(3, shared=net.last, update=Descent(lr=1e-9))
    for step in range(30):
        balancer([*net.losses(batch(step)).values()]).backward()
        balancer.step()
    assert "No weight has been updated" in balancer.report()
    state = balancer.state_dict()
    del state["_step_count"]
    balancer.load_state_dict(state, strict=False)
    assert "No weight has been updated" not in balancer.report()


def test_an_optimizer_that_writes_into_data_trains():
    run = Run(attach=False)
    run.step = lambda: [p.data.sub_(1e-4 * p.grad) for p in run.net.parameters()]
    run.balancer.attach(torch.optim.SGD(run.net.parameters(), lr=1e-4))
    assert len(accumulate(run, 1610)) == 1


def test_nothing_is_kept_or_counted_after_a_step():
    run = Ordinary()
    run.train()
    assert run.balancer._silence._gap.count == 0
    assert not run.balancer._silence._gap.watched


@pytest.mark.parametrize("shared", ["named", "detected"])
def test_a_layer_that_was_frozen_later_is_refused_with_the_remedy(shared):
    run = Run(shared=None) if shared == "detected" else Run()
    run.train(2)
    run.net.trunk.requires_grad_(False)
    with pytest.raises(GraphError, match=r"W \(shape \(8, 8\)\) was frozen after .* Call balancer.freeze\(\) to keep"):
        run.backward(2)
    run.balancer.freeze()
    run.backward(2)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda balancer: pickle.loads(pickle.dumps(balancer)), "saved"])
def test_a_copy_of_an_attached_balancer_is_free(way):
    run = Ordinary()
    run.train(2)
    if way == "saved":
        torch.save(run.balancer, file := io.BytesIO())
        twin = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    else:
        twin = way(run.balancer)
    assert twin._attached_to() is None
    assert twin._measurement.window._attached is None
    twin.attach(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]))


def test_micro_batches_add_up_in_a_copy_as_well():
    """What the original was attached to says nothing about the copy's gradients."""
    run = Ordinary()
    run.train(2)
    net, balancer = copy.deepcopy((run.net, run.balancer))
    net.zero_grad()
    for step in range(4):
        (balancer(net.losses(batch(step))) / 4).backward()
    assert balancer._measurement.sums.counts.tolist() == [4, 4, 4]


# -------------------------------------------------------------------------------------------------------------- warn


@cpu_only
@pytest.mark.parametrize("attach", [True, False])
def test_a_warning_points_to_the_users_line(attach):
    run = Run(attach)
    losses = run.losses(0)
    run.balancer(losses | {"a": losses["a"] - 1e3}).backward()
    with pytest.warns(RuntimeWarning, match="left the loss weights unchanged") as said:
        run.optimizer.step() if attach else run.balancer.step()
    assert [each.filename for each in said] == [__file__]


def test_a_warning_points_past_a_trainer():
    trainer = {"__name__": "lightning.pytorch.loops", "warn": warn}
    exec("def fit():\n    warn('balanced nothing')", trainer)
    with pytest.warns(RuntimeWarning, match="balanced nothing") as said:
        trainer["fit"]()
    assert [each.filename for each in said] == [__file__]


PROGRAM = """
import torch
from gradnorm import GradNorm

def run():
    w = torch.nn.Parameter(torch.ones(2, 2))
    balancer = GradNorm(2, shared=w)
    optimizer = torch.optim.SGD([w], lr=0.0)
    balancer.attach(optimizer)
    balancer([w.sum() - 9, w.sum() - 9]).backward()
    optimizer.step()

for _ in range(3):
    run()
"""


@pytest.mark.parametrize(("action", "count"), [("default", 3), ("always", 3), ("once", 1), ("ignore", 0), ("error", 1)])
def test_every_balancer_of_a_process_can_warn_and_filters_apply(action, count, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-W", f"{action}::RuntimeWarning", "program.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stderr.count("RuntimeWarning: GradNorm left") == count
    assert ran.stderr.count("program.py:11: RuntimeWarning") == (count if action != "error" else 0)
    assert ran.returncode == (action == "error")

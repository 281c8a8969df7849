"""Networks that train side by side as one are the networks that train alone."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from gradnorm.study.digits import Digits, DigitsConfig
from gradnorm.study.rl import Rl, RlConfig
from gradnorm.study.run import UsageError, _step, measure
from gradnorm.study.stack import Stack
from gradnorm.study.toy import Toy, ToyConfig

TOY = Toy(ToyConfig(seeds=1, batch=16, test_size=32))
DIGITS = Digits(DigitsConfig(seeds=1, batch=16, test_size=32))
WEIGHTS = {"T=2": [(1.0, 1.0), (1.9, 0.1), (0.2, 1.8)], "digits": [(1.0, 1.0, 1.0), (2.0, 0.9, 0.1), (0.1, 0.1, 2.8)]}
STEPS = 25


def build(study, problem, weights):
    job = next(job for job in study.jobs() if job.problem == problem and job.method == "static")
    torch.manual_seed(job.seed)
    return study.experiment(replace(job, weights=weights, weights_from=None, label="w"))


def trained(experiment):
    rows = []
    for step in range(STEPS):
        _step(experiment, step, rows, record=step % 5 == 0)
    return rows + measure(experiment, STEPS)


@pytest.mark.parametrize(("study", "problem"), [(TOY, "T=2"), (DIGITS, "digits")], ids=["toy", "digits"])
def test_a_stack_trains_its_networks_as_each_would_alone(study, problem):
    weightings = WEIGHTS[problem]
    flat = [w for weights in weightings for w in weights]
    stack = Stack(build(study, problem, weightings[0]), flat)
    together = {(step, quantity): value for step, quantity, value in trained(stack)}
    seen = set()
    for k, weights in enumerate(weightings):
        single = build(study, problem, weights)
        for step, quantity, value in trained(single):
            key = (step, f"{quantity}@{k}")
            assert together[key] == pytest.approx(value, rel=2e-4, abs=1e-6), key
            seen.add(key)
        for ours, theirs in zip(stack.model.parameters(), single.model.parameters(), strict=True):
            torch.testing.assert_close(ours[k], theirs, rtol=1e-3, atol=1e-4)
    assert seen == set(together)


def test_networks_of_a_stack_end_apart():
    weightings = WEIGHTS["T=2"]
    stack = Stack(build(TOY, "T=2", weightings[0]), [w for weights in weightings for w in weights])
    before = [p.detach().clone() for p in stack.model.parameters()]
    assert all(torch.equal(p[0], p[1]) for p in before)
    trained(stack)
    assert not any(torch.equal(p[0], p[1]) for p in stack.model.parameters())


def test_runs_that_cannot_share_a_pass_are_refused():
    rl = Rl(RlConfig(seeds=1, warm_up=4, memory=64))
    with pytest.raises(UsageError, match="--together"):
        Stack(partial(rl.experiment, rl.jobs()[0])(), [1.0] * 6)
    normed = build(TOY, "T=2", (1.0, 1.0))
    normed.model.add_module("norm", torch.nn.BatchNorm1d(3))
    with pytest.raises(UsageError, match="--together"):
        Stack(normed, [1.0] * 6)

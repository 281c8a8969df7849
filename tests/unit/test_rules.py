"""What the loss weights become, step by step, from losses and gradient norms that are given."""

import pytest
import torch

from gradnorm import ClosedForm, Descent, GradNorm

NAMES = ["a", "b", "c"]


class Given:
    """A balancer whose tasks have the losses and gradient norms that a test says; `None` is a task that is absent."""

    def __init__(self, tasks=3, **kwargs):
        self.W = torch.nn.Parameter(torch.zeros(tasks, 2))
        self.balancer = GradNorm(NAMES[:tasks], shared=self.W, **kwargs)

    def backward(self, norms, losses=None):
        losses = losses or [1.0] * len(norms)
        self.balancer(
            [
                None if norm is None else loss + norm * (row[0] - row[0].detach())
                for row, loss, norm in zip(self.W, losses, norms, strict=True)
            ]
        ).backward()

    def step(self, norms, losses=None):
        """[T], the weights after it."""
        self.backward(norms, losses)
        self.balancer.step()
        self.W.grad = None
        return self.weights

    @property
    def weights(self):
        return self.balancer.weights.tolist()


def shares(norms):
    """Weights that make these norms equal, sum T."""
    inverse = [1 / norm for norm in norms]
    return pytest.approx([len(norms) * each / sum(inverse) for each in inverse], rel=1e-5)


class Idle(torch.optim.Optimizer):
    """Steps nowhere, and says of each step whether a fused optimizer would have skipped it."""

    def __init__(self, parameters):
        super().__init__(parameters, {})
        self.found_inf = torch.zeros(())

    def step(self, closure=None):
        pass


# ----------------------------------------------------------------------------------------------------------- the start


def test_weights_that_are_assigned_before_the_first_step_are_those_to_start_from():
    given = Given(update="closed-form")
    given.balancer.weights = [1.0, 2.0, 3.0]
    given.backward([1.0, 10.0, 100.0])
    assert given.weights == [0.5, 1.0, 1.5]


@pytest.mark.parametrize("scale", [float("inf"), 3e38])
def test_a_start_waits_for_norms_that_are_finite(scale):
    given = Given(initial_weights="balanced")
    given.backward([scale, 10.0, 100.0])
    assert given.weights == [1.0, 1.0, 1.0]
    given.balancer.reset()
    given.backward([1.0, 10.0, 100.0])
    assert given.weights == shares([1.0, 10.0, 100.0])


def test_a_task_without_a_gradient_starts_balanced_when_it_has_one():
    given = Given(update="closed-form", alpha=0.0)
    given.step([1.0, 10.0, 0.0])
    assert given.step([1.0, 10.0, 100.0]) == shares([1.0, 10.0, 100.0])


@pytest.mark.filterwarnings("ignore:GradNorm left the loss weights unchanged")
def test_where_no_task_has_a_gradient_weights_stay():
    given = Given(update="closed-form", alpha=0.0)
    assert given.step([0.0, 0.0, 0.0]) == [1.0, 1.0, 1.0]


def test_a_task_that_never_has_a_gradient_is_looked_for_ten_times(monkeypatch):
    given = Given(initial_weights="balanced")
    looks = []
    rule = given.balancer._loss_weights.rule
    take = rule.open
    monkeypatch.setattr(rule, "open", lambda *args: looks.append(1) or take(*args))
    for _ in range(15):
        given.step([1.0, 10.0, 0.0])
    assert len(looks) == 10
    given.balancer.reset_parameters()
    for _ in range(15):
        given.step([1.0, 10.0, 0.0])
    assert len(looks) == 20


def test_micro_batches_are_one_try_to_start():
    given = Given(initial_weights="balanced")
    for _ in range(12):
        given.backward([1.0, 10.0, 0.0])
    given.balancer.reset()
    given.backward([1.0, 10.0, 100.0])
    assert given.weights == shares([1.0, 10.0, 100.0])


@pytest.mark.parametrize("options", [{"initial_losses": 3}, {"alpha": 1.0}])
@pytest.mark.filterwarnings("ignore:GradNorm left the loss weights unchanged")
def test_the_sum_is_restored_after_a_task_that_starts_within_a_step(options):
    """Whether or not the step updates the weights."""
    given = Given(tasks=2, update="closed-form", **options)
    given.backward([None, 100.0], [-1.0, -1.0])
    given.backward([1.0, None], [-1.0, -1.0])
    assert sum(given.weights) != pytest.approx(2.0)
    given.balancer.step()
    assert sum(given.weights) == pytest.approx(2.0)
    assert given.weights == shares([1.0, 100.0])


def test_weights_that_are_assigned_within_the_first_step_hold():
    given = Given(tasks=2, update="closed-form", alpha=0.0)
    given.backward([1.0, 100.0])
    given.balancer.weights = [0.5, 1.5]
    given.W.grad = None
    given.backward([1.0, 100.0])
    assert given.W.grad[:, 0].tolist() == [0.5, 150.0]


def test_a_task_that_comes_alone_starts_on_the_level_of_those_before():
    given = Given(update="closed-form", alpha=0.0)
    given.step([1.0, 4.0, None])
    assert given.step([None, None, 2.0]) == shares([1.0, 4.0, 2.0])


# ---------------------------------------------------------------------------------------------- steps that do not count


def test_a_step_skipped_on_the_device_gives_no_first_loss_and_is_no_bad_one():
    given = Given()
    optimizer = Idle([given.W])
    given.balancer.attach(optimizer)
    optimizer.found_inf = torch.ones(())
    given.backward([1.0, 10.0, float("inf")], losses=[9.0, 9.0, 9.0])
    optimizer.step()
    assert given.balancer.initial_losses.isnan().all()
    assert given.balancer.log_dict()["gradnorm/skipped"] == 0
    optimizer.found_inf = torch.zeros(())
    given.backward([1.0, 10.0, 100.0], losses=[1.0, 2.0, 3.0])
    optimizer.step()
    assert given.balancer.initial_losses.tolist() == [1.0, 2.0, 3.0]


def test_a_new_task_starts_balanced_against_the_averages_of_those_that_are_absent():
    given = Given(tasks=2, update=ClosedForm(smoothing=0.5), alpha=0.0)
    for norm in (1.0, 7.0):
        given.step([norm, None])
    average = ((1.0 * 0.5 + 7.0**2) / 1.5) ** 0.5  # bias-corrected
    given.backward([None, 2.0])
    assert given.weights == shares([average, 2.0])


def test_a_task_new_in_the_first_step_is_balanced_against_one_without_an_average():
    given = Given(tasks=2, update=ClosedForm(), alpha=0.0)
    given.backward([3.0, None])
    given.backward([None, 2.0])
    assert given.weights == pytest.approx([1.0, 1.5])


def test_an_update_whose_result_is_no_weight_is_taken_back_where_a_task_is_absent():
    given = Given(alpha=0.0, update=Descent(optimizer=lambda weights, lr: torch.optim.SGD(weights, lr=1e30)))
    assert given.step([1e15, 3e15, None]) == [1.0, 1.0, 1.0]


def test_an_optimizer_that_looks_at_all_entries_sees_no_absent_task():
    given = Given(alpha=0.0, update=Descent(lr=0.1, optimizer=torch.optim.Adafactor))
    a, b, c = given.step([1.0, 10.0, None])
    assert a > 1 > b
    assert c == 1.0


# --------------------------------------------------------------------------------------------------------------- rules


def test_the_least_weight_is_the_floor_before_the_sum_is_restored():
    given = Given(2, alpha=0.0, update=Descent(lr=10.0, optimizer=torch.optim.SGD, min_weight=0.1))
    assert given.step([1.0, 9.0]) == pytest.approx([2 * 11 / 11.1, 2 * 0.1 / 11.1])


def test_a_gradient_of_zero_says_nothing_of_a_tasks_scale():
    given = Given(2, alpha=0.0, update=ClosedForm(smoothing=0.9))
    given.step([1.0, 3.0])
    assert given.step([0.0, 3.0]) == shares([1.0, 3.0])


def test_a_rate_is_bounded_so_that_one_loss_near_zero_decides_nothing_for_all():
    given = Given(2, alpha=1.0, update=ClosedForm(smoothing=0.0))
    given.step([1.0, 1.0])
    a, b = given.step([1.0, 1.0], losses=[1e-6, 1.0])
    assert a / b == pytest.approx(0.1 / 2, rel=1e-4)


def test_one_update_serves_several_balancers():
    update = ClosedForm(smoothing=0.9)
    one, other = (Given(2, alpha=0.0, update=update) for _ in range(2))
    one.step([1.0, 3.0])
    assert other.step([5.0, 1.0]) == shares([5.0, 1.0])


def test_priorities_that_were_changed_outlive_a_reset():
    given = Given(2, alpha=0.0, update="closed-form")
    given.balancer.priorities["b"] = 3.0
    given.balancer.reset_parameters()
    assert given.step([1.0, 1.0]) == [0.5, 1.5]


def test_there_is_no_cosine_with_a_task_that_is_absent():
    given = Given(cosines_every=1)
    for norms in ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, None]):
        given.step(norms)
    logged = given.balancer.log_dict()
    assert logged["gradnorm/cosine/a/b"] == 0
    assert "gradnorm/cosine/a/c" not in logged

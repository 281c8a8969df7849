"""Threads, each with a balancer of its own, get what they would get one after another."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from gradnorm import GradNorm

from ..unit.networks import Net, batch, train

NAMES = ["a", "b", "c"]


def work(net, alpha, steps=20):
    balancer = GradNorm(NAMES, shared=net.last, alpha=alpha)
    train(net, balancer, steps)
    return balancer.weights, net.last


def test_models_of_their_own():
    alphas = [0.0, 0.5, 1.0, 1.5] * 2
    nets = [Net() for _ in alphas]  # seeded, which threads would do to each other
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, nets, alphas))
    for alpha, parts in zip(alphas, found, strict=True):
        assert all(map(torch.equal, parts, work(Net(), alpha)))


def test_the_backward_may_run_in_another_thread_than_the_forward():
    here, there = Net(), Net()
    one, two = GradNorm(NAMES, shared=here.last), GradNorm(NAMES, shared=there.last)
    with ThreadPoolExecutor(1) as pool:
        for step in range(5):
            one(here.losses(batch(step))).backward()
            loss = two(there.losses(batch(step)))
            pool.submit(loss.backward).result()
            one.step()
            two.step()
    assert torch.equal(one.weights, two.weights)


class Pause(torch.autograd.Function):
    """In the middle of a backward, lets another thread go ahead and waits for it."""

    @staticmethod
    def forward(ctx, loss, reached, built):
        ctx.events = reached, built
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        reached, built = ctx.events
        reached.set()
        assert built.wait(30), "the other thread never got to build"
        return gradient, None, None


def test_one_thread_goes_backward_while_another_builds_on_the_same_model():
    def going_back(net, balancer, reached, built):
        losses = net.losses(batch(0))
        losses["b"] = Pause.apply(losses["b"], reached, built)
        balancer(losses).backward()
        balancer.step()

    def building(net, balancer):
        return balancer(net.losses(batch(1)))

    def finish(balancer, loss):
        loss.backward()
        balancer.step()

    net, alone = Net(), Net()
    one, two = (GradNorm(NAMES, shared=net.last) for _ in range(2))
    reached, built = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        backward = pool.submit(going_back, net, one, reached, built)
        assert reached.wait(30)
        loss = building(net, two)
        built.set()
        backward.result()
    finish(two, loss)

    built.set()  # nobody to wait for
    three, four = (GradNorm(NAMES, shared=alone.last) for _ in range(2))
    going_back(alone, three, reached, built)
    finish(four, building(alone, four))
    assert torch.equal(one.weights, three.weights)
    assert torch.equal(two.weights, four.weights)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(net.parameters(), alone.parameters(), strict=True))

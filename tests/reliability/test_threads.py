"""Threads, each with a model and a balancer of its own, get what they would get one after another."""

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

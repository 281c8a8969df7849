"""`torch.compile` beyond single parts (tests/unit/capture/test_compile.py): whole steps, and what must be refused."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from gradnorm import GradNorm, GraphError

from ..unit.networks import Net, batch

NAMES = ["a", "b", "c"]
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
pytestmark = pytest.mark.filterwarnings("default")  # torch's own, while it compiles


@pytest.fixture(autouse=True)
def fresh_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()


def training_step(net, balancer, optimizer, x):
    loss = balancer(net.losses(x))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    balancer.step()
    return loss


def trained(step, update="descent"):
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, update=update)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    for number in range(4):
        step(net, balancer, optimizer, batch(number))
    return balancer.weights, [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("update", ["descent", "closed-form"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_training_step_is_that_of_eager_mode(backend, update):
    weights, parameters = trained(torch.compile(training_step, backend=backend), update)
    wanted, others = trained(training_step, update)
    torch.testing.assert_close(weights, wanted)
    for a, b in zip(parameters, others, strict=True):
        torch.testing.assert_close(a, b)
    assert (wanted - 1).abs().max() > 0.01


@pytest.mark.parametrize("options", [{}, {"every": 3}, {"cosines_every": 2}, {"at": "features"}], ids=str)
@pytest.mark.parametrize("compiled", ["whole", "attached", "forward", "step"])
def test_nothing_is_compiled_anew_once_all_kinds_of_steps_were_seen(compiled, options):
    net = Net()
    balancer = GradNorm(NAMES, shared=net.last, **options)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)

    def forward(x):
        return balancer(net.losses(x))

    def step():
        optimizer.step()
        if compiled != "attached":
            balancer.step()

    def whole(x):
        optimizer.zero_grad()
        forward(x).backward()
        step()

    if compiled == "attached":
        balancer.attach(optimizer)
    if compiled == "forward":
        forward = torch.compile(forward, backend="eager")
    if compiled == "step":
        step = torch.compile(step, backend="eager")
    if compiled in ("whole", "attached"):
        whole = torch.compile(whole, backend="eager")
    for number in range(4):
        whole(batch(number))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(4, 14):
            whole(batch(number))
    assert len(balancer.history) == (5 if balancer.every == 3 else 14)


def test_one_graph_with_branches_is_compiled_for_measured_steps_and_for_others():
    net = Net()
    balancer = GradNorm(NAMES, at="branches", every=3)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def forward(x):
        features = balancer.branch(net.trunk(x))
        return balancer([head(each).square().mean() for head, each in zip(net.heads, features, strict=True)])

    for number in range(14):
        forward(batch(number)).backward()
        balancer.step()
    assert len(balancer.history) == 5


class WithBalancer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()
        self.balancer = GradNorm(NAMES, shared=self.net.last)

    def forward(self, x):
        return self.balancer(self.net.losses(x))


@pytest.mark.parametrize(("kept", "cause"), [("eval", "the balancer is in eval()"), ("frozen", "it is frozen")])
def test_a_compiled_network_whose_balancer_does_not_update_is_told(kept, cause):
    model = WithBalancer()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model.balancer.attach(optimizer)
    if kept == "eval":
        model.eval()
    else:
        model.balancer.load_state_dict(GradNorm(NAMES).freeze().state_dict())
    forward = torch.compile(model, backend="eager", fullgraph=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", RuntimeWarning)
        for number in range(110):
            forward(batch(number)).backward()
            optimizer.step()
    (message,) = [str(each.message) for each in said if each.category is RuntimeWarning]
    assert message.startswith(f"GradNorm has balanced 100 losses and updated no weight: {cause}")


def test_a_compiled_validation_with_grad_is_compiled_once():
    model = WithBalancer().eval()
    forward = torch.compile(model, backend="eager", fullgraph=True)
    forward(batch(0))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(1, 4):
            forward(batch(number))


def test_a_compiled_network_that_holds_its_balancer():
    class Whole(Net):
        def __init__(self):
            super().__init__()
            self.balancer = GradNorm(NAMES, shared=self.last)

        def forward(self, x):
            return self.balancer(self.losses(x))

    eager, net = Whole(), Whole()
    compiled = torch.compile(net, backend="aot_eager")
    for number in range(4):
        for forward, each in ((eager, eager), (compiled, net)):
            forward(batch(number)).backward()
            each.balancer.step()
    torch.testing.assert_close(net.balancer.weights, eager.balancer.weights)
    torch.testing.assert_close(net.last.grad, eager.last.grad)


def test_the_block_that_holds_w_may_stay_eager():
    class Blocks(Net):
        def losses(self, x):
            features = self.eager(self.compiled(x))
            return {name: head(features).square().mean() for name, head in self.named()}

    def build(backend):
        net = Blocks()
        net.compiled = torch.compile(net.trunk[:2], backend=backend) if backend else net.trunk[:2]
        net.eager = net.trunk[2:]
        net.heads = torch.nn.ModuleList(torch.compile(h, backend=backend) if backend else h for h in net.heads)
        return net

    found = []
    for backend in (None, "aot_eager"):
        net = build(backend)
        balancer = GradNorm(NAMES, shared=net.last)
        for number in range(3):
            balancer(net.losses(batch(number))).backward()
            balancer.step()
        found.append((balancer.weights, net.last.grad))
    torch.testing.assert_close(*found)


@pytest.mark.skipif(torch.__version__ < "2.8", reason="torch had no place for the reason")
def test_one_graph_around_the_balancer_is_refused_with_the_remedy():
    with pytest.raises(torch._dynamo.exc.Unsupported, match="call the balancer outside of what is compiled with fullg"):
        trained(torch.compile(training_step, backend="aot_eager", fullgraph=True))


def test_compiled_autograd_is_refused():
    with (
        torch._dynamo.config.patch(compiled_autograd=True),
        pytest.raises(GraphError, match=r"leave torch\._dynamo\.config\.compiled_autograd off, or measure with at="),
    ):
        trained(torch.compile(training_step, backend="aot_eager"))


SCRIPT = """
import sys
import torch
import torch._functorch.config
from gradnorm import GradNorm, GraphError

torch._functorch.config.donated_buffer = "off" not in sys.argv
torch.manual_seed(0)
trunk, heads = torch.nn.Linear(6, 8), torch.nn.ModuleList(torch.nn.Linear(8, 1) for _ in range(2))
forward = torch.compile(lambda x: [head(trunk(x).tanh()).square().mean() for head in heads])
losses = forward(torch.ones(4, 6))
if "plain" in sys.argv:
    sum(losses).backward()
    sys.exit()
balancer = GradNorm(2, shared=trunk.weight)
try:
    balancer(losses).backward()
except GraphError as error:
    sys.exit(f"refused: {error}")
balancer.step()
rows = [torch.autograd.grad(h(trunk(torch.ones(4, 6)).tanh()).square().mean(), trunk.weight)[0] for h in heads]
norms = torch.tensor([row["norm"] for row in balancer.history.rows()])
torch.testing.assert_close(norms, torch.stack(rows).norm(dim=(1, 2)))
"""


@pytest.mark.slow
def test_a_backward_that_was_compiled_for_one_run_is_refused_and_the_remedy_works(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))

    def python(*arguments):
        return subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)

    assert python("plain").returncode == 0  # fills the disk cache
    refused = python()
    assert "refused: torch.compile has compiled this backward for a single run" in refused.stderr
    kept = python("off")
    assert kept.returncode == 0, kept.stderr

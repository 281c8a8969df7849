"""State that other tools save, load, move, average and replace: the run continues as if undisturbed, or stops."""

import copy
import io
import json
import pickle
import zlib
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gradnorm import Descent, GradNorm, GraphError, StateError

from ..unit.networks import Net, batch

NAMES = ["a", "b", "c"]
UPDATES = ["descent", "closed-form"]
STEPS = 4


class Model(Net):
    """A network that holds its balancer; tools see one module."""

    def __init__(self, seed=0, **kwargs):
        super().__init__(seed=seed)
        self.balancer = GradNorm(NAMES, **kwargs)

    def forward(self, x):
        return self.balancer(self.losses(x))


def train(model, steps=STEPS, first=0):
    """`steps` steps of plain SGD, which has no state of its own."""
    for step in range(first, first + steps):
        model.zero_grad()
        model(batch(step)).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.01 * p.grad
        model.balancer.step()
    return model


def assert_same(model, wanted):
    torch.testing.assert_close(model.state_dict(), wanted.state_dict(), rtol=0, atol=0)
    assert model.balancer._steps == wanted.balancer._steps
    assert torch.equal(model.balancer.initial_losses, wanted.balancer.initial_losses)


# ------------------------------------------------------------------------------ carriers: resumed is uninterrupted


def on_meta(**kwargs):
    with torch.device("meta"):
        return Model(**kwargs)


def loaded(model, state, **how):
    model.load_state_dict(state, **how)
    return model


def copied_in_place(trained, path, **kwargs):
    model = Model(seed=1, **kwargs)
    for name, value in model.state_dict().items():
        value.copy_(trained.state_dict()[name])
    return model


def mapped(trained, path, **kwargs):
    torch.save(trained.state_dict(), path / "state.pt")
    return loaded(on_meta(**kwargs), torch.load(path / "state.pt", mmap=True), assign=True)


def safe(trained, path, **kwargs):
    from safetensors.torch import load_model, save_model

    save_model(trained, path / "state.safetensors")
    model = Model(seed=1, **kwargs)
    load_model(model, path / "state.safetensors")
    return model


def distributed(trained, path, **kwargs):
    dcp.save({"model": trained.state_dict()}, checkpoint_id=path / "dcp")
    model = Model(seed=1, **kwargs)
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=path / "dcp")
    return loaded(model, state["model"])


def dispatched(trained, path, include_buffers, **kwargs):
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch

    torch.save(trained.state_dict(), path / "state.pt")
    with init_empty_weights(include_buffers=include_buffers):
        model = Model(**kwargs)
    return load_checkpoint_and_dispatch(model, str(path / "state.pt"), device_map={"": "cpu"}).requires_grad_()


def one_by_one(trained, path, **kwargs):
    """As transformers 4 loads: key after key, each into the module that holds it."""
    model = on_meta(**kwargs)
    for name, value in trained.state_dict().items():
        owner, _, key = name.rpartition(".")
        model.get_submodule(owner).load_state_dict({key: value}, strict=False, assign=True)
    return model.train()


def by_attribute(trained, path, **kwargs):
    model = on_meta(**kwargs).to_empty(device="cpu")
    for name, value in trained.named_buffers():
        owner, _, key = name.rpartition(".")
        setattr(model.get_submodule(owner), key, value.clone())
    torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(trained.parameters()).detach(), model.parameters()
    )
    return model


def as_before(trained, path, assign, **kwargs):
    """The types and keys of states that were saved by 0.1."""
    state = trained.state_dict()
    for name, value in list(state.items()):
        match name.rpartition(".")[2]:
            case "_names":
                state[name] = torch.tensor(list(b"a\0b\0c"), dtype=torch.uint8)
            case "_step_count" | "skipped" | "_bad":
                state[name] = value.long()
            case "_is_frozen" | "_opened":
                state[name] = value.bool()
            case "_layout":
                del state[name]
            case "options":
                del state[name]
                state[name.removesuffix("options") + "_extra_state"] = torch.tensor(0.025, dtype=torch.float64)
    return loaded(Model(seed=1, **kwargs), state, assign=assign)


CARRIERS = {
    "load": lambda trained, path, **kwargs: loaded(Model(seed=1, **kwargs), trained.state_dict()),
    "assign": lambda trained, path, **kwargs: loaded(Model(seed=1, **kwargs), trained.state_dict(), assign=True),
    "meta, assign": lambda trained, path, **kwargs: loaded(on_meta(**kwargs), trained.state_dict(), assign=True),
    "to_empty, load": lambda trained, path, **kwargs: loaded(
        on_meta(**kwargs).to_empty(device="cpu"), trained.state_dict()
    ),
    "mmap": mapped,
    "safetensors": safe,
    "dcp": distributed,
    "accelerate": partial(dispatched, include_buffers=False),
    "accelerate with buffers": partial(dispatched, include_buffers=True),
    "in place": copied_in_place,
    "one by one": one_by_one,
    "by attribute": by_attribute,
    "0.1": partial(as_before, assign=False),
    "0.1, assign": partial(as_before, assign=True),
    "deepcopy": lambda trained, path, **kwargs: copy.deepcopy(trained),
    "pickle": lambda trained, path, **kwargs: pickle.loads(pickle.dumps(trained)),
    "share_memory": lambda trained, path, **kwargs: copy.deepcopy(trained).share_memory(),
    "double and back": lambda trained, path, **kwargs: copy.deepcopy(trained).double().float(),
}


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("carrier", CARRIERS)
def test_carried_over_is_uninterrupted(carrier, update, tmp_path):
    kwargs = {"update": update, "every": 2, "alpha": 0.7}
    whole = train(Model(**kwargs), 2 * STEPS + 1)
    model = CARRIERS[carrier](train(Model(**kwargs), STEPS + 1), tmp_path, **kwargs)
    assert_same(train(model, STEPS, STEPS + 1), whole)


def test_a_state_that_was_assigned_is_not_shared():
    state = train(Model()).state_dict()
    first, second = (loaded(Model(), state, assign=True) for _ in range(2))
    before = second.balancer.weights.clone()
    first.balancer(Net().losses(batch())).backward()
    first.balancer.step()
    assert torch.equal(second.balancer.weights, before)
    assert not torch.equal(first.balancer.weights, before)


def test_a_state_is_loaded_onto_the_meta_device():
    saved = train(Model()).balancer
    with torch.device("meta"):
        balancer = GradNorm(NAMES)
    balancer.load_state_dict(saved.state_dict())
    torch.testing.assert_close(balancer.state_dict(), saved.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("at", ["layer", "features"])
@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_in_the_middle_of_a_step_makes_the_same_step(again, at, update):
    model = train(Model(update=update, at=at))
    loss = model(batch(9))
    unmeasured = again(model)
    loss.backward()
    twin = again(model)
    for each in (model, twin):
        each.balancer.step()
    assert_same(twin, model)
    with pytest.raises(StateError, match="before a backward"):
        unmeasured.balancer.step()
    assert_same(train(twin, 2), train(model, 2))


# ------------------------------------------------------------------------------- builders: built is the initial state


def materialized(**kwargs):
    """As Lightning and FSDP do it, module by module."""
    model = on_meta(**kwargs)
    for module in model.modules():
        if any(t.is_meta for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
            module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()
    return model


def after_to_empty(**kwargs):
    return on_meta(**kwargs).to_empty(device="cpu")


def reset(**kwargs):
    model = train(Model(**kwargs))
    model.balancer.reset_parameters()
    return model


def full_of(value, **kwargs):
    return _fill(on_meta(**kwargs), value)


def _fill(model, value):
    """As transformers fills what a checkpoint lacks: with memory as it is."""
    for name, tensor in list(model.named_buffers()):
        owner, _, key = name.rpartition(".")
        setattr(model.get_submodule(owner), key, torch.full_like(tensor, value, device="cpu"))
    return model


def under_inference_mode(**kwargs):
    with torch.inference_mode():
        return Model(**kwargs)


def moved_under_inference_mode(**kwargs):
    model = Model(**kwargs)
    with torch.inference_mode():
        model.balancer.double().float()
        model.balancer.load_state_dict({k: v.clone() for k, v in model.balancer.state_dict().items()}, assign=True)
    return model


def under_default_dtype(**kwargs):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return Model(**kwargs)
    finally:
        torch.set_default_dtype(before)


def from_meta_and_back(**kwargs):
    return train(Model(**kwargs)).to("meta").to_empty(device="cpu")


BUILDERS = {
    "meta": on_meta,
    "to_empty": after_to_empty,
    "module by module": materialized,
    "reset_parameters": reset,
    "zeros": partial(full_of, 0.0),
    "ones": partial(full_of, 1.0),
    "garbage": partial(full_of, -7.3e19),
    "nan": partial(full_of, torch.nan),
    "inference_mode": under_inference_mode,
    "moved in inference_mode": moved_under_inference_mode,
    "default dtype": under_default_dtype,
    "half": lambda **kwargs: Model(**kwargs).half(),
    "bfloat16": lambda **kwargs: Model(**kwargs).bfloat16(),
    "to meta and back": from_meta_and_back,
}
SETTINGS = [
    {},
    {"update": "closed-form", "priorities": [1, 2, 3]},
    {"initial_weights": [1, 2, 3], "initial_losses": 2, "update": Descent(0.1, torch.optim.Adagrad)},
]


@pytest.mark.parametrize("kwargs", SETTINGS)
@pytest.mark.parametrize("builder", BUILDERS)
def test_built_in_any_way_is_the_initial_state(builder, kwargs):
    wanted, model = Model(**kwargs), Model(**kwargs)
    model.balancer = BUILDERS[builder](**kwargs).balancer
    assert_same(train(model), train(wanted))
    assert {t.dtype for t in model.balancer.buffers()} == {torch.float32}


@pytest.mark.parametrize("leave", [lambda model: model.to_empty(device="cpu"), lambda model: _fill(model, 0.0).eval()])
def test_settings_made_on_the_meta_device_are_part_of_the_initial_state(leave):
    model = on_meta(update="closed-form")
    model.balancer.weights = [1, 1, 4]
    model.balancer.freeze()
    balancer = leave(model).train().balancer
    assert balancer.weights.tolist() == [0.5, 0.5, 2.0]
    losses = Net().losses(batch())
    torch.testing.assert_close(balancer(losses), 0.5 * losses["a"] + 0.5 * losses["b"] + 2 * losses["c"])
    balancer.step()
    assert not balancer._steps
    assert balancer.weights.tolist() == [0.5, 0.5, 2.0], "it was frozen"


def test_reset_parameters_empties_the_history_and_leaves_it_frozen():
    balancer = train(Model()).balancer.freeze()
    balancer.reset_parameters()
    assert balancer._frozen
    assert balancer._is_frozen == 1
    assert not balancer.history.rows()
    assert set(balancer.log_dict()) == {"gradnorm/skipped"}
    assert balancer.weights.tolist() == [1, 1, 1]
    assert balancer.initial_losses.isnan().all()
    with pytest.raises(StateError, match="no step"):
        balancer.time_averaged_weights()


def test_a_base_checkpoint_leaves_the_balancer_of_a_pretrained_model_as_it_was_made(tmp_path):
    model, base = _pretrained()
    base.save_pretrained(tmp_path)
    found = model.from_pretrained(tmp_path)
    assert found.balancer.weights.tolist() == [1.0, 1.0]
    torch.testing.assert_close(found.balancer.state_dict(), model(base.config).balancer.state_dict())


@pytest.mark.parametrize("tasks", [["cls", "reg"], ["pose", "depth"]])
def test_memory_of_a_freed_balancer_is_no_state(tasks):
    """An allocator overwrites the first 16 bytes of what is freed: of the names four bits, maybe zeros before."""
    balancer = GradNorm(tasks)
    for name, buffer in list(balancer._buffers.items()):
        found = buffer.clone()
        found.view(-1)[:4] = 4e-41
        balancer._buffers[name] = found
    assert balancer.train().weights.tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("update", UPDATES)
def test_a_pretrained_model_s_balancer_comes_back(update, dtype, tmp_path):
    model, base = _pretrained(update=update, priorities=[1, 3])
    first = model(base.config)
    for _ in range(STEPS):
        first.step()
    first.save_pretrained(tmp_path)
    found = model.from_pretrained(tmp_path, dtype=dtype).train()
    torch.testing.assert_close(found.balancer.state_dict(), first.balancer.state_dict(), rtol=0, atol=0)
    assert found.balancer._loss_weights._priorities.tolist() == [1, 3]
    if dtype is torch.float32:
        for each in (first, found):
            each.step()
        torch.testing.assert_close(found.balancer.state_dict(), first.balancer.state_dict(), rtol=0, atol=0)
    other, _ = _pretrained(update=UPDATES[1 - UPDATES.index(update)])
    with pytest.raises(StateError, match="another update rule"):
        other.from_pretrained(tmp_path)
    other, _ = _pretrained(["cls", "ger"], update=update)
    with pytest.raises(StateError, match="of the tasks cls, reg, this balancer's are cls, ger"):
        other.from_pretrained(tmp_path)


def _pretrained(names=("cls", "reg"), **kwargs):
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    class Config(transformers.PretrainedConfig):
        model_type = "two"

    class Base(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.trunk = torch.nn.Linear(6, 8)
            self.post_init()

    class Two(Base):
        def __init__(self, config):
            super().__init__(config)
            self.heads = torch.nn.Linear(8, 2)
            self.balancer = GradNorm(names, **kwargs)
            self.post_init()

        def step(self):
            y = self.heads(self.trunk(batch()).tanh())
            self.balancer([y[:, 0].square().mean(), 9 * y[:, 1].exp().mean()]).backward()
            self.balancer.step()

    return Two, Base(Config())


@pytest.mark.parametrize("leave", ["forward", "to_empty", "assign"])
def test_branches_measure_after_the_meta_device(leave):
    def step(balancer):
        model = Net()
        features = model.trunk(batch())
        outputs = [head(branch) for head, branch in zip(model.heads, balancer.branch(features), strict=True)]
        balancer([10**i * (y - 1).square().mean() for i, y in enumerate(outputs)]).backward()
        balancer.step()
        return balancer

    wanted, state = step(GradNorm(NAMES, at="branches")), GradNorm(NAMES).state_dict()
    with torch.device("meta"):
        balancer = GradNorm(NAMES, at="branches")
    if leave == "to_empty":
        balancer.to_empty(device="cpu")
    elif leave == "assign":
        balancer.load_state_dict(state, assign=True)
    torch.testing.assert_close(step(balancer).state_dict(), wanted.state_dict(), rtol=0, atol=0)


# ------------------------------------------------------------------------- what is not this balancer's state is refused


def test_a_part_of_a_state_is_refused_at_the_first_forward():
    state = train(Model()).state_dict()
    part = {name: value for name, value in state.items() if "rule" not in name}
    model = Model()
    model.load_state_dict(part, strict=False)
    with pytest.raises(StateError, match=r"only a part .*without _loss_weights\.rule.*reset_parameters\(\)"):
        model(batch())
    model.balancer.reset_parameters()
    model(batch())
    model.load_state_dict(state)
    model.load_state_dict({name: value for name, value in state.items() if "balancer" not in name}, strict=False)
    assert_same(train(model, 1, STEPS), train(Model(), STEPS + 1))


def test_a_part_is_refused_after_a_whole_state_as_well():
    state = train(Model()).state_dict()
    part = {name: value for name, value in state.items() if "rule" not in name}
    model = Model()
    model.load_state_dict(state)
    model(batch())
    model.load_state_dict(part, strict=False)
    with pytest.raises(StateError, match="only a part"):
        model(batch())


def test_a_state_whose_names_are_no_bits_was_never_written():
    """As an average that began at zero: its weights are no better than its names."""
    state = {name: 0.6 * value for name, value in train(Model()).state_dict().items()}
    model = Model()
    model.load_state_dict(state)
    assert model.balancer.weights.tolist() == [1.0] * len(NAMES)


def test_a_state_that_is_partly_on_the_meta_device_is_refused():
    model = on_meta()
    model.balancer._loss_weights.weights = torch.ones(3)
    with pytest.raises(StateError, match="only a part"):
        model.balancer(Net().losses(batch()))
    with pytest.raises(StateError, match="only a part"):
        model.to_empty(device="cpu")


def test_a_state_of_another_rule_is_refused_before_anything_changes():
    balancer, other = Model().balancer, train(Model(update="closed-form")).balancer
    before = copy.deepcopy(balancer.state_dict())
    for how in ({}, {"strict": False}, {"assign": True}):
        with pytest.raises(StateError, match=r"another update rule.*same update="):
            balancer.load_state_dict(other.state_dict(), **how)
        torch.testing.assert_close(balancer.state_dict(), before)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0, -1.0])
def test_a_damaged_state_is_refused(value):
    state = copy.deepcopy(train(Model()).state_dict())
    state["balancer._loss_weights.weights"][1] = value
    with pytest.raises(StateError, match="damaged, in weights"):
        Model().load_state_dict(state)


# ------------------------------------------------------------------------------------------------------------- averages

AVERAGES = {
    "mean": {},
    "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    "function": {"avg_fn": lambda average, new, count: 0.99 * average + (1 - 0.99) * new},
}


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("average", AVERAGES)
def test_an_averaged_model_has_a_state_that_loads_and_trains(average, update):
    model = train(Model(update=update, alpha=0.5))
    averaged = AveragedModel(model, use_buffers=True, **AVERAGES[average])
    history = []
    for step in range(STEPS, 3 * STEPS):
        train(model, 1, step)
        averaged.update_parameters(model)
        history.append(model.balancer.weights.clone())
    mean = averaged.module.balancer
    low, high = torch.stack(history).aminmax(dim=0)
    assert ((low - 1e-6 <= mean.weights) & (mean.weights <= high + 1e-6)).all()
    other = loaded(Model(update=update, alpha=0.5), averaged.module.state_dict())
    torch.testing.assert_close(other.balancer.initial_losses, model.balancer.initial_losses)
    before = other.balancer.initial_losses.clone()
    train(other, 1)
    torch.testing.assert_close(other.balancer.initial_losses, before)


def test_counts_that_an_average_made_fractions_of_still_count():
    balancer = train(Model(alpha=0.5)).balancer
    state = copy.deepcopy(balancer.state_dict())
    for name in ("_loss_weights._initial_counts", "_loss_weights._initial_sums", "_step_count"):
        state[name] *= 1 - 1e-6
    model = Model(alpha=0.5)
    model.balancer.load_state_dict(state)
    assert model.balancer._steps == STEPS
    train(model, 2, first=7)
    torch.testing.assert_close(model.balancer.initial_losses, balancer.initial_losses)


@pytest.mark.parametrize("decay", [0.9, 0.9999, 0.99999])
def test_a_long_average_over_the_state_dict_still_names_its_tasks(decay):
    balancer = GradNorm(["clasificación", "任务"])
    mean = copy.deepcopy(balancer.state_dict())
    for _ in range(20_000):
        mean = {
            k: decay * old + (1 - decay) * new
            for (k, old), new in zip(mean.items(), balancer.state_dict().values(), strict=True)
        }
    balancer.load_state_dict(mean)
    with pytest.raises(StateError, match="clasificación, 任务"):
        GradNorm(["other", "names"]).load_state_dict(GradNorm(["clasificación", "任务"]).state_dict())


def test_lightning_s_weight_averaging(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.callbacks import WeightAveraging

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model()

        def training_step(self, x, index):
            return self.model(x)

        def on_train_batch_end(self, *_):
            self.model.balancer.step()

        def validation_step(self, x, index):
            self.validated = self.model(x).item()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    def fit(steps, **kwargs):
        module = Module()
        trainer = lightning.Trainer(
            callbacks=[WeightAveraging()],
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            check_val_every_n_epoch=1,
        )
        data = [torch.utils.data.DataLoader(torch.randn(12, 6), batch_size=3) for _ in range(2)]
        trainer.fit(module, *data, **kwargs)
        return module, trainer

    module, trainer = fit(8)
    assert module.model.balancer._steps == 8
    assert torch.isfinite(torch.tensor(module.validated))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    Model().load_state_dict({name.removeprefix("model."): value for name, value in state.items()})


@pytest.mark.parametrize("update", UPDATES)
def test_the_state_of_the_start_starts_again(update):
    """`L(0)` is measured again, although the balancer knew one."""
    model = Model(update=update, alpha=1.0)
    start = copy.deepcopy(model.state_dict())
    loaded(train(model, first=7), start)
    assert_same(train(model), train(Model(update=update, alpha=1.0)))


BEFORE = json.loads(Path(__file__).with_name("state_before_at_layer.json").read_text())
"""States of three steps, saved when `at="layer"` was called `at="weights"`, of the run below."""


@pytest.mark.parametrize("update", UPDATES)
def test_a_state_saved_when_at_was_called_weights_is_loaded_and_continued(update):
    torch.manual_seed(0)
    trunk, heads = torch.nn.Linear(4, 3), torch.nn.ModuleList(torch.nn.Linear(3, 1) for _ in range(2))
    made = [GradNorm(["near", "far"], shared=trunk.weight, update=update, at="layer") for _ in range(2)]
    optimizer, generator = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.01), torch.Generator()
    generator.manual_seed(1)

    def run(balancer, x):
        features = trunk(x).tanh()
        optimizer.zero_grad()
        balancer([(k * head(features) - 1).square().mean() for k, head in zip((1, 5), heads, strict=True)]).backward()

    for _ in range(3):
        run(made[0], torch.randn(5, 4, generator=generator))
        optimizer.step()
        made[0].step()
    made[1].load_state_dict({name: torch.tensor(value) for name, value in BEFORE[update].items()})
    torch.testing.assert_close(made[1].state_dict(), made[0].state_dict(), rtol=1e-4, atol=1e-6)
    x = torch.randn(5, 4, generator=generator)
    for balancer in made:
        run(balancer, x)
        balancer.step()
    torch.testing.assert_close(made[1].weights, made[0].weights, rtol=1e-4, atol=1e-6)


# ----------------------------------------------------------------------------------------------- what schedulers change


@pytest.mark.parametrize("factory", [torch.optim.Adam, partial(torch.optim.SGD, momentum=0.9)])
def test_what_a_scheduler_changed_is_resumed(factory):
    def start():
        model = Model(update=Descent(0.025, factory))
        return model, torch.optim.lr_scheduler.OneCycleLR(model.balancer.optimizer, max_lr=0.1, total_steps=20)

    def run(model, scheduler, first, steps):
        for step in range(first, first + steps):
            train(model, 1, step)
            scheduler.step()

    whole, scheduler = start()
    run(whole, scheduler, 0, 9)
    first, scheduler = start()
    run(first, scheduler, 0, 5)
    state = io.BytesIO()
    torch.save({"model": first.state_dict(), "scheduler": scheduler.state_dict()}, state)
    state.seek(0)
    saved = torch.load(state, weights_only=True)
    second, scheduler = start()
    second.load_state_dict(saved["model"])
    scheduler.load_state_dict(saved["scheduler"])
    mine, theirs = (m.balancer.optimizer.param_groups[0] for m in (second, first))
    for option in ("lr", "betas", "momentum"):
        assert mine.get(option) == theirs.get(option)
    assert mine["lr"] != 0.025
    run(second, scheduler, 5, 4)
    assert_same(second, whole)


KEEPERS = {
    "a state without the balancer": lambda model: loaded(model, Net().state_dict(), strict=False),
    "another buffer written": lambda model: model,
    "moved": lambda model: loaded(model.double(), Net().state_dict(), strict=False),
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "saved": lambda model: loaded(Model(), model.state_dict()),
}


@pytest.mark.parametrize("way", KEEPERS)
def test_what_a_scheduler_changed_stays(way):
    model = train(Model())
    model.balancer.optimizer.param_groups[0]["lr"] = 0.5
    model = KEEPERS[way](model)
    model.balancer._names.add_(0)  # as whoever writes to all buffers
    model.balancer.train()
    assert model.balancer.optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("again", [lambda model: model, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_what_a_scheduler_changes_after_a_state_was_loaded_stays(again):
    model = loaded(Model(), train(Model()).state_dict())
    model.balancer.optimizer.param_groups[0]["lr"] = 0.5
    model = again(model)
    model.balancer._names.add_(0)  # as whoever writes to all buffers
    model.balancer.train()
    assert model.balancer.optimizer.param_groups[0]["lr"] == 0.5


def test_a_state_brings_its_own_options_even_if_nothing_was_saved_since():
    model = Model()
    state = copy.deepcopy(model.state_dict())
    model.balancer.optimizer.param_groups[0]["lr"] = 0.5
    model.load_state_dict(state)
    assert model.balancer.optimizer.param_groups[0]["lr"] == 0.025


# ---------------------------------------------------------------------------------------- calls that are not a training


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:While compiling, we found:UserWarning")
def test_an_exported_model_is_the_weighted_sum_and_training_is_refused(strict):
    model = train(Model()).eval()
    exported = torch.export.export(model, (batch(),), strict=strict)
    torch.testing.assert_close(exported.module()(batch()), model(batch()))
    if not strict:  # otherwise the compiler's own error says as much
        with pytest.raises(GraphError, match=r"call eval\(\)"):
            torch.export.export(model.train(), (batch(),), strict=False)


def test_a_model_that_accelerate_offloads_is_the_weighted_sum():
    from accelerate import cpu_offload

    model = train(Model()).eval()
    wanted = model(batch())
    offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    torch.testing.assert_close(offloaded(batch()), wanted)
    with pytest.raises(StateError, match="only a part"):  # Accelerate brings back what a forward of its own uses
        cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)(batch())


def test_a_subclass_may_have_buffers_of_its_own():
    class Mine(GradNorm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.register_buffer("own", torch.ones(2))

    with torch.device("meta"):
        balancer = Mine(NAMES)
    balancer.to_empty(device="cpu").reset_parameters()
    assert balancer.own.shape == (2,)
    assert not balancer.own.is_meta
    assert balancer.weights.tolist() == [1, 1, 1]


def test_functional_call_with_other_buffers_leaves_the_module_s_own():
    model = train(Model())
    wanted = train(copy.deepcopy(model), 2, STEPS)
    changed = {name: value.clone() for name, value in model.named_buffers()}
    changed["balancer._loss_weights.weights"] = torch.tensor([3.0, 1e-6, 1e-6])
    found = torch.func.functional_call(model, changed, (batch(),))
    torch.testing.assert_close(found, 3 * model.losses(batch())["a"], rtol=1e-3, atol=1e-3)
    model.zero_grad()
    own = {name: value.clone() for name, value in model.named_buffers()}
    torch.func.functional_call(model, own, (batch(STEPS),)).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.01 * p.grad
    model.balancer.step()
    assert_same(train(model, 1, STEPS + 1), wanted)


def test_an_ensemble_of_states_is_evaluated_in_one_vmap():
    models = [train(Model(seed=seed)).eval() for seed in range(2)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = batch()
    found = torch.func.vmap(lambda p, b: torch.func.functional_call(models[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([model(x) for model in models]))


def test_a_compiled_model_trains_on_what_was_put_in_before():
    model = full_of(0.0)
    wanted = Model().eval()
    model.load_state_dict({k: v for k, v in wanted.state_dict().items() if "balancer" not in k}, False, assign=True)
    model.eval()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(batch()), wanted(batch()))


def test_buffers_cast_behind_the_module_s_back_are_widened():
    model = Model()
    for name, value in list(model.balancer.named_buffers()):
        owner, _, key = name.rpartition(".")
        model.balancer.get_submodule(owner)._buffers[key] = value.to(torch.bfloat16)
    assert {value.dtype for value in train(model).balancer.buffers()} == {torch.float32}


def test_the_layout_is_the_same_in_every_process():
    """A hash that Python salts would not be."""
    balancer = GradNorm(2)
    names = sorted(name for name in balancer.state_dict() if name not in ("_names", "_layout"))
    bits = zlib.crc32(" ".join(names).encode())
    assert balancer._layout.tolist() == [bits >> (24 - 8 * (i // 8)) + i % 8 & 1 for i in range(32)]

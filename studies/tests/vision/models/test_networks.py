import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradnorm import GradNorm
from gradnorm_studies.vision.models.dense import Head
from gradnorm_studies.vision.models.fcn import FCN
from gradnorm_studies.vision.models.segnet import SegNet

HEADS = {"segmentation": Head(13), "depth": Head(1), "normals": Head(3)}
both = pytest.mark.parametrize("family", [SegNet, FCN])


def narrow(family):
    torch.manual_seed(0)
    return family(HEADS, width=1 / 32)


def images(height=64, width=64):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def losses(network, image):
    return {task: (1 + i) * out.square().mean() for i, (task, out) in enumerate(network(image).items())}


@pytest.mark.parametrize(("family", "millions"), [(SegNet, 29), (FCN, 15)])
def test_parameters_are_as_many_as_in_the_paper(family, millions):
    count = sum(p.numel() for p in family(HEADS).parameters()) / 1e6
    assert abs(count - millions) <= 1
    assert f"{count:.1f} M" in family.__doc__


@both
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (160, 32)])
def test_maps_are_a_quarter_of_the_image(family, height, width):
    out = narrow(family).eval()(images(height, width))
    assert {task: x.shape for task, x in out.items()} == {
        task: (2, head.channels, height // 4, width // 4) for task, head in HEADS.items()
    }


@both
@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 90)])
def test_other_sizes_are_refused_with_what_to_do(family, height, width):
    with pytest.raises(ValueError, match=rf"{height}×{width}.*multiples of 32"):
        narrow(family)(images(height, width))


@both
def test_bad_arguments_are_refused(family):
    with pytest.raises(ValueError, match="no task"):
        family({})
    with pytest.raises(ValueError, match="width is 0"):
        family(HEADS, width=0)


@both
def test_all_but_the_heads_is_shared_by_every_task(family):
    network = narrow(family)
    heads = {id(p) for p in network.heads.parameters()}
    shared = [p for p in network.parameters() if id(p) not in heads]
    assert len(heads) == 2 * len(HEADS)
    for task, loss in losses(network, images()).items():
        network.zero_grad()
        loss.backward(retain_graph=True)
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in shared)
        mine = {id(p) for p in network.heads[task].parameters()}
        assert {id(p) for p in network.parameters() if p.grad is not None} == {id(p) for p in shared} | mine


@both
def test_a_task_about_the_whole_image_reads_the_encoder_whose_last_layer_is_then_w(family):
    torch.manual_seed(0)
    network = family({"kind": Head(4, whole=True), "depth": Head(1, hidden=8)}, width=1 / 32)
    found = losses(network, images())
    assert network(images())["kind"].shape == (2, 4)
    encoder, decoder = ({id(p) for p in part.parameters()} for part in (network.encoder, network.decoder))
    assert id(network.last_shared.weight) in encoder
    found["kind"].backward(retain_graph=True)
    reached = {id(p) for p in network.parameters() if p.grad is not None}
    assert encoder <= reached
    assert not decoder & reached
    balancer = GradNorm(["kind", "depth"])
    balancer(found).backward()
    assert [id(p) for p in balancer.shared] == [id(network.last_shared.weight)]
    assert not list(family({"kind": Head(4, whole=True)}).decoder.parameters())


@both
def test_heads_are_affine(family):
    assert all(type(head) is nn.Conv2d and head.kernel_size == (1, 1) for head in narrow(family).heads.values())


@both
def test_gradnorm_finds_the_last_shared_layer_by_itself(family):
    network = narrow(family)
    balancer = GradNorm(HEADS)
    balancer(losses(network, images())).backward()
    assert [id(p) for p in balancer.shared] == [id(network.last_shared.weight)]


@both
def test_width_scales_every_layer(family):
    wide, half = family(HEADS), family(HEADS, width=0.5)
    for one, other in zip(wide.modules(), half.modules(), strict=True):
        if isinstance(one, nn.BatchNorm2d):
            assert other.num_features == one.num_features // 2


def test_unpooling_puts_values_where_the_maximum_was():
    network = narrow(SegNet).eval()
    before, unpooled = [], []
    for stage in network.encoder:
        stage.register_forward_hook(lambda _, __, out: before.append(out))
    for stage in network.decoder:
        stage.register_forward_pre_hook(lambda _, args: unpooled.append(args[0]))
    network(images())
    for x, y in zip(reversed(before), unpooled, strict=False):
        maximum = x == F.max_pool2d(x, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
        assert y.count_nonzero() > 0
        assert maximum[y != 0].all()

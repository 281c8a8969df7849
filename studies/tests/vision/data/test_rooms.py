"""The rooms' truth agrees with the geometry it was made from, and with itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from gradnorm import ArgumentError
from gradnorm_studies.vision.data import augment
from gradnorm_studies.vision.data.rooms import ROOMS, Rooms, furniture, layout, render
from gradnorm_studies.vision.data.rooms.dataset import LEAST_SHARE, look_up
from gradnorm_studies.vision.data.rooms.furniture import WHITE
from gradnorm_studies.vision.data.rooms.render import gaussian, is_lit, pack, pixel_rays, trace
from gradnorm_studies.vision.data.rooms.scene import FACES, FOCAL, PART, Draft, Place, Shape, camera_axes
from gradnorm_studies.vision.data.sample import CLASSES, KEYPOINTS, collate

SIZE, OUT = 64, 32
STORED = [
    *(0.122, 0.016, 0.246, 0.012, 0.12, 0.013, 0.005, 0.0, 0.0, 0.0, 0.0, 0.433, 0.034, 3.448, 3.319, 3.126, 2.522),
    *(0.415, 0.0, 0.0, 0.0, 0.0, 0.162, 0.524, 0.015, 0.0, 0.0, 0.0, 0.0, 0.299, 0.0, 1.472, 2.609, 1.337, 2.454),
    0.422,
]
"""Per room: each class's share, mean depth by quarters of the image (holes count as 0), the image's mean."""
NOT_OBJECTS = [CLASSES.index(name) for name in ("wall", "floor", "ceiling")]


@pytest.fixture(scope="module")
def scenes():
    rooms = Rooms("train", n=24, seed=3)
    return [rooms.scene(i) for i in range(len(rooms))]


@pytest.fixture(scope="module")
def samples(scenes):
    return render(scenes, SIZE, OUT)


@pytest.fixture(scope="module")
def hits(scenes):
    batch = pack(scenes)
    return batch, trace(batch, pixel_rays(batch, OUT))


def local(part, points):
    """Points [n, 3] in a part's coordinates, by hand in float64: undo the turn, then the lean, then the size."""
    c, s = np.cos(part["yaw"]), np.sin(part["yaw"])
    x, y, z = (points - part["center"]).T
    x, y = c * x + s * y, c * y - s * x
    c, s = np.cos(part["tilt"]), np.sin(part["tilt"])
    y, z = c * y + s * z, c * z - s * y
    return np.stack([x, y, z], axis=1) / part["half"]


def depth_inside(part, points):
    """1 on a part's surface, less inside, more outside."""
    x = local(part, points)
    if part["shape"] == Shape.CYLINDER:
        return np.maximum(np.hypot(x[:, 0], x[:, 1]), abs(x[:, 2]))
    return np.linalg.norm(x, axis=1) if part["shape"] == Shape.ELLIPSOID else abs(x).max(axis=1)


def looking_at(scene, build):
    """The scene's room with nothing in it but what `build` adds, seen from 0.5 m before its south wall, level."""
    draft = Draft(np.random.default_rng(0))
    draft.rows = [tuple(row) for row in scene.parts[:FACES]]
    x, z = scene.size[0] / 2, 1.2
    build(draft.piece("table", Place(x, 0.5, z)))
    position = np.array([x, 0.5, z])
    return replace(scene, parts=np.array(draft.rows, PART), position=position, axes=camera_axes(0.0, 0.0, 0.0))


def test_a_board_under_a_lamp_shades_what_the_lamp_s_rays_say(scenes):
    scene = looking_at(scenes[0], lambda p: p.box((-0.25, 0.25), (0.75, 1.25), (-0.21, -0.2), WHITE))
    x = scene.size[0] / 2
    lamp = torch.tensor([[x, 1.5, 2.2]], dtype=torch.float32)  # 1.2 m above the board's top, which is 0.99 m up
    reach = 0.25 * 2.2 / 1.21
    offsets = (0.0, 0.97 * reach, 1.03 * reach)
    points = torch.tensor([[[x + offset, 1.5, 0.0] for offset in offsets]], dtype=torch.float32)
    assert is_lit(pack([scene]), lamp, points).tolist() == [[False, False, True]]


def test_noise_has_the_promised_spread_and_no_pattern():
    noise = gaussian(torch.tensor([5, 6]), torch.empty(2, 3, 64, 64))
    assert noise.mean().abs() < 0.02
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    for other in (noise[:, :, :, 1:] * noise[:, :, :, :-1], noise[0] * noise[1], noise[:, 0] * noise[:, 1]):
        assert other.mean().abs() < 0.05


@pytest.mark.parametrize(
    ("build", "at_center", "normal"),
    [
        (lambda p: p.box((-0.5, 0.5), (1.5, 2.0), (-0.5, 0.5), WHITE), 1.5, (0, 0, -1)),
        (lambda p: p.box((-0.5, 0.5), (1.5, 2.5), (-0.01, 0.01), WHITE, tilt=np.pi / 2), 1.99, (0, 0, -1)),
        (lambda p: p.cylinder(0, 2.0, (-0.5, 0.5), 0.4, WHITE), 1.6, (0, 0, -1)),
        (lambda p: p.ball((-0.5, 0.5), (1.4, 2.0), (-0.3, 0.3), WHITE), 1.4, (0, 0, -1)),
    ],
    ids=["box", "leaned box", "cylinder", "ball"],
)
def test_depth_and_normal_straight_ahead(scenes, build, at_center, normal):
    batch = pack([looking_at(scenes[0], build)])
    hit = trace(batch, pixel_rays(batch, 33))
    middle = 33 * 33 // 2
    assert hit.depth[0, middle].item() == pytest.approx(at_center, abs=1e-4)
    assert_close((hit.normal @ batch.axes.mT)[0, middle], torch.tensor(normal).float(), atol=1e-4, rtol=0)


def test_a_ball_s_outline_is_where_trigonometry_puts_it(scenes):
    batch = pack([looking_at(scenes[0], lambda p: p.ball((-0.3, 0.3), (1.2, 1.8), (-0.3, 0.3), WHITE))])
    hit = trace(batch, pixel_rays(batch, 201))
    row = hit.part.view(201, 201)[100] >= FACES
    reach = np.tan(np.arcsin(0.3 / 1.5)) * FOCAL * 201
    assert row.sum().item() == pytest.approx(2 * reach, abs=1.5)


def test_every_hit_lies_on_its_part_and_nothing_is_in_front(scenes, hits):
    batch, found = hits
    rays = pixel_rays(batch, OUT).double().numpy()
    for b, scene in enumerate(scenes[:8]):
        depth = found.depth[b].double().numpy()
        point = scene.position + depth[:, None] * rays[b]
        parts = batch.parts["shape"][b]
        for n in np.unique(found.part[b].numpy()):
            mine = found.part[b].numpy() == n
            row = {name: values[b, n].double().numpy() for name, values in batch.parts.items()}
            on = depth_inside(row, point[mine])
            assert np.abs((on - 1) * row["half"].min()).max() < 2e-3, Shape(int(parts[n]))
        for share in (0.3, 0.6, 0.9, 0.995):
            before = scene.position + share * depth[:, None] * rays[b]
            assert (before > -1e-3).all()
            assert (before < scene.size + 1e-3).all()
            for part in scene.parts[FACES:]:
                assert depth_inside(part, before).min() > 0.999


def test_the_sample_s_depth_and_class_are_the_hits_(samples, hits):
    batch, found = hits
    known = samples.depth.flatten(1) > 0
    assert_close(samples.depth.flatten(1)[known], found.depth[known])
    assert torch.equal(samples.segmentation.flatten(1), look_up(batch, found, "label"))


def test_normals_are_units_that_face_the_camera(samples):
    known = samples.depth.squeeze(1) > 0
    lengths = samples.normals.norm(dim=1)
    assert_close(lengths[known], torch.ones_like(lengths[known]), atol=1e-4, rtol=0)
    assert (lengths[~known] == 0).all()
    assert ((camera_rays(OUT) * samples.normals).sum(dim=1)[known] < 1e-3).all()


def camera_rays(size):
    """[3, size, size], by the pinhole formula."""
    x = ((torch.arange(size) + 0.5) / size - 0.5) / FOCAL
    return torch.stack([x.expand(size, size), x[:, None].expand(size, size), torch.ones(size, size)])


def normals_from_depth(depth):
    """Cross products of the back-projected depth's differences, [B, 3, h−2, w−2]."""
    points = camera_rays(depth.shape[-1]) * depth
    across = points[:, :, 1:-1, 2:] - points[:, :, 1:-1, :-2]
    down = points[:, :, 2:, 1:-1] - points[:, :, :-2, 1:-1]
    return F.normalize(torch.linalg.cross(down, across, dim=1), dim=1)


@pytest.mark.parametrize("change", [lambda s: s, augment.flip], ids=["as rendered", "flipped"])
def test_normals_agree_with_depth_on_flat_surfaces(scenes, samples, hits, change):
    batch, found = hits
    flat = torch.isin(look_up(batch, found, "shape"), torch.tensor([Shape.BOX, Shape.FACE])).view(-1, 1, OUT, OUT)
    part = torch.where(flat, found.part.view(-1, 1, OUT, OUT), -1).float()
    image = torch.cat([samples.normals, samples.depth, part], dim=1)
    changed = change(replace(samples, image=image))
    normals, depth = changed.normals, changed.depth
    part = changed.image[:, 4:]
    alike = (F.max_pool2d(part, 3, 1) == -F.max_pool2d(-part, 3, 1)) & (part[:, :, 1:-1, 1:-1] >= 0)
    # All nine cells on one face of one part, and none a hole.
    alike &= -F.max_pool2d(-depth, 3, 1) > 0
    patches = F.unfold(normals, 3).view(len(normals), 3, 9, OUT - 2, OUT - 2)
    same = (patches * normals[:, :, None, 1:-1, 1:-1]).sum(dim=(1, 2))
    alike = alike.squeeze(1) & (same > 8.999)
    agreement = (normals_from_depth(depth) * normals[:, :, 1:-1, 1:-1]).sum(dim=1)[alike]
    assert len(agreement) > 5000
    assert agreement.min() > 0.999


def test_boxes_enclose_what_is_seen_of_each_object(scenes, samples):
    batch = pack(scenes)
    seen = trace(batch, pixel_rays(batch, SIZE))
    for b, scene in enumerate(scenes):
        instances = look_up(batch, seen, "instance")[b].view(SIZE, SIZE).numpy()
        expected = set()
        for instance in np.unique(instances[instances > 0]):
            down, across = np.nonzero(instances == instance)
            label = scene.parts["label"][scene.parts["instance"] == instance][0]
            if len(down) >= LEAST_SHARE * SIZE**2:
                expected.add((across.min(), down.min(), across.max() + 1, down.max() + 1, label))
        rows = torch.cat([samples.boxes[b], samples.labels[b][:, None]], dim=1)
        found = {tuple(map(int, row)) for row in rows if row[4] >= 0}
        assert found == expected
        assert (rows[rows[:, 4] < 0, :4] == 0).all()
    assert not torch.isin(samples.labels, torch.tensor(NOT_OBJECTS)).any()


def test_keypoints_are_the_corners_in_view_and_where_edges_leave_the_image(scenes):
    for scene in scenes:
        shown = layout.TYPES[scene.view.kind]
        points = scene.view.keypoints
        assert len(points) == sum(shown.rows)
        corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * scene.size
        right, down, forward = scene.axes @ (corners - scene.position).T
        with np.errstate(divide="ignore"):
            projected = np.stack([right / forward, down / forward], axis=1) * FOCAL + 0.5
        inside = (forward > 0) & ((projected >= 0) & (projected <= 1)).all(axis=1)
        on_border = np.abs(points - 0.5).max(axis=1) > 0.5 - 1e-9
        assert inside.sum() == (~on_border).sum()
        for corner in projected[inside]:
            assert np.abs(points[~on_border] - corner).max(axis=1).min() < 1e-9
        above, below = np.split(points, [shown.rows[0]])
        assert all((np.diff(row[:, 0]) > 0).all() for row in (above, below))


def test_all_48_keypoints_have_a_type():
    assert [sum(kind.rows) for kind in layout.TYPES] == [8, 6, 6, 4, 6, 4, 4, 4, 2, 2, 2]
    assert layout.FIRST[-1] == KEYPOINTS
    assert torch.equal(layout.MIRROR[layout.MIRROR], torch.arange(KEYPOINTS))


def test_heatmaps_peak_at_their_keypoints(scenes, samples):
    for scene, maps in zip(scenes, samples.keypoints, strict=True):
        used = maps.flatten(1).amax(dim=1) > 0.5
        first = layout.FIRST[scene.view.kind]
        assert used.nonzero().flatten().tolist() == list(range(first, layout.FIRST[scene.view.kind + 1]))
        for keypoint, heat in zip(scene.view.keypoints, maps[first:], strict=False):
            row, column = divmod(heat.argmax().item(), OUT)
            assert np.abs(np.array([column + 0.5, row + 0.5]) - keypoint * OUT).max() <= 0.5 + 1e-4
    assert samples.keypoints.amax() <= 1


def mirrored(scene):
    """The scene as a mirror at x = 0 shows it, moved back to 0 … width."""
    mirror = np.diag([-1.0, 1.0, 1.0])
    parts = scene.parts.copy()
    parts["center"][:, 0] = scene.size[0] - parts["center"][:, 0]
    parts["yaw"] = -parts["yaw"]
    parts[[1, 3]] = parts[[3, 1]]
    position = scene.position * [-1, 1, 1] + [scene.size[0], 0, 0]
    axes = mirror @ scene.axes @ mirror
    view = layout.project(scene.size, position, axes, FOCAL)
    lights = scene.lights * [-1, 1, 1] + [scene.size[0], 0, 0]
    return replace(scene, parts=parts, position=position, axes=axes, view=view, lights=lights)


def test_a_flipped_sample_is_the_mirrored_scene(scenes, samples):
    expected, found = render([mirrored(scene) for scene in scenes], SIZE, OUT), augment.flip(samples)
    # A ray along an edge may fall to either side.
    assert (expected.segmentation == found.segmentation).float().mean() > 0.999
    known = (expected.depth > 0) & (found.depth > 0)
    assert known.float().mean() > 0.6
    assert ((expected.depth - found.depth)[known].abs() < 1e-3).float().mean() > 0.999
    cosine = (expected.normals * found.normals).sum(dim=1, keepdim=True)[known]
    assert (cosine > 0.999).float().mean() > 0.999
    assert_close(expected.keypoints, found.keypoints, atol=1e-4, rtol=0)
    assert (expected.boxes - found.boxes).abs().le(1).all(dim=2).float().mean() > 0.95


def test_one_at_a_time_is_as_many_at_once(scenes, samples):
    one_by_one = collate([render([scene], SIZE, OUT).map(lambda values: values[0]) for scene in scenes])
    assert (one_by_one.segmentation == samples.segmentation).float().mean() > 0.9999
    assert ((one_by_one.depth - samples.depth).abs() < 1e-4).float().mean() > 0.999
    assert ((one_by_one.image - samples.image).abs() < 1e-3).float().mean() > 0.999
    assert torch.equal(one_by_one.keypoints, samples.keypoints)


def test_the_same_number_is_the_same_room():
    rooms = Rooms("train", n=8, size=32, out=8)
    again = Rooms("train", n=4, size=32, out=8)
    assert torch.equal(rooms[2].image, again[2].image)
    assert torch.equal(rooms.batch([2, 5]).depth, rooms.batch([2, 5]).depth)


def test_a_stored_room_has_not_changed():
    rooms = Rooms("train", n=2, seed=7, size=64, out=32)
    found = []
    for sample in (rooms[0], rooms[1]):
        shares = [(sample.segmentation == i).float().mean().item() for i in range(len(CLASSES))]
        found += [*shares, *F.avg_pool2d(sample.depth, 16).flatten().tolist(), sample.image.mean().item()]
    assert_close(torch.tensor(found), torch.tensor(STORED), atol=4e-3, rtol=0)


def test_no_two_rooms_are_alike_in_or_between_splits_and_seeds():
    fingerprints = [
        Rooms(split, n=30, seed=seed).scene(i).position.tobytes()
        for split in ("train", "test")
        for seed in (0, 1)
        for i in range(30)
    ]
    assert len(set(fingerprints)) == 120


def test_depth_has_holes_of_a_sensible_share(samples):
    holes = (samples.depth == 0).float().mean(dim=(1, 2, 3))
    assert 0.04 < holes.mean() < 0.25
    assert holes.max() < 0.7
    assert samples.depth.max() < 12


def test_images_are_exposed_and_noisy(samples):
    assert samples.image.min() >= 0
    assert samples.image.max() <= 1
    brightness = samples.image.mean(dim=(1, 2, 3))
    assert brightness.min() > 0.2
    assert brightness.max() < 0.75


def test_classes_follow_the_kind_of_room():
    rooms = Rooms("train", n=160)
    scenes = [rooms.scene(i) for i in range(len(rooms))]
    kinds = np.array([scene.room for scene in scenes])
    assert np.bincount(kinds, minlength=len(ROOMS)).min() > 20
    present = np.array([np.isin(np.arange(len(CLASSES)), scene.parts["label"]) for scene in scenes])
    share = {name: [present[kinds == k, i].mean() for k in range(len(ROOMS))] for i, name in enumerate(CLASSES)}
    bedroom, living, office, dining = range(len(ROOMS))
    assert share["bed"][bedroom] > 0.8
    assert share["bed"][office] == 0
    assert share["sofa"][living] > 0.8
    assert share["books"][office] > share["books"][dining]
    assert share["table"][dining] > 0.7
    assert all(max(shares) > 0.3 for shares in share.values())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"split": "val"}, "split is 'val'"),
        ({"n": 0}, "n is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"size": 4}, "size is 4"),
        ({"out": 1}, "out is 1"),
        ({"style": "empty"}, "style is .empty.: give one of full, sparse"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ArgumentError, match=named):
        Rooms(**{"split": "train", "n": 1, **arguments})


def test_an_index_beyond_the_end_is_refused():
    with pytest.raises(IndexError, match="samples 0 to 2"):
        Rooms("train", n=3).scene(3)


def test_sparse_rooms_have_few_and_large_objects_of_five_classes():
    full, sparse = (Rooms("train", n=100, size=32, out=8, style=style) for style in ("full", "sparse"))
    scenes = [sparse.scene(i) for i in range(len(sparse))]
    samples = sparse.batch(range(50))
    labels = {CLASSES[label] for label in samples.labels.unique() if label >= 0}
    assert labels == {"bed", "furniture", "sofa", "table", "window"}
    objects = [len(np.unique(scene.parts["instance"])) - 1 for scene in scenes]
    assert min(objects) >= 1
    assert max(objects) <= 6
    assert max(scene.size[:2].max() for scene in scenes) <= 4.2
    for scene in scenes:
        for instance in set(scene.parts["instance"].tolist()) - {0}:
            assert 2 * scene.parts["half"][scene.parts["instance"] == instance].max() >= 0.7

    def mean_side(part):
        corners = part.boxes[part.labels >= 0]
        return (corners[:, 2:] - corners[:, :2]).mean()

    assert mean_side(samples) > 1.5 * mean_side(full.batch(range(50)))


def test_a_room_in_which_nothing_found_its_place_is_drawn_again():
    tries = iter((False, True))
    pieces = {kind: ((1.0, lambda draft: next(tries) and furniture.bed(draft)),) for kind in ROOMS}
    scene = furniture.draw(np.random.default_rng(0), furniture.Style(pieces, ("wall", "floor", "ceiling", "bed")))
    assert CLASSES.index("bed") in scene.parts["label"]
    assert next(tries, None) is None

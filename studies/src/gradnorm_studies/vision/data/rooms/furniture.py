"""The furniture of each kind of room, built from boxes, cylinders and ellipsoids.

Every function finds a place for its piece and builds it there, or leaves it out where the room is full. In a piece's
own coordinates x runs along the wall, y from its back to its front, z up from what it stands on.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from gradnorm_studies.vision.data.rooms.scene import (
    SHELL,
    Color,
    Draft,
    Material,
    Piece,
    Place,
    Scene,
    Shape,
    Texture,
    look,
)
from gradnorm_studies.vision.data.sample import CLASSES

ROOMS = ("bedroom", "living room", "office", "dining room")
"""The kinds of room."""

METAL = Material((0.35, 0.35, 0.37), gloss=0.5)
DARK = Material((0.03, 0.03, 0.035), gloss=0.3)
WHITE = Material((0.72, 0.71, 0.68))
SCREEN = Material((0.008, 0.009, 0.012), gloss=0.9)


def hsv(hue: float, saturation: float, value: float) -> Color:
    """A linear color from hue, saturation and value as they look."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return red**2.2, green**2.2, blue**2.2


def scaled(color: Color, factor: float) -> Color:
    red, green, blue = (min(1.0, c * factor) for c in color)
    return red, green, blue


def wood(draft: Draft, along: int = 0) -> Material:
    """Grain along one of a part's axes."""
    color = hsv(draft.between(0.055, 0.1), draft.between(0.3, 0.65), draft.between(0.35, 0.85))
    frequency = [14.0, 14.0, 14.0]
    frequency[along] = 0.8
    if draft.chance(0.2):
        return painted(draft)
    return Material(color, scaled(color, 0.62), (frequency[0], frequency[1], frequency[2]), Texture.WOOD, gloss=0.15)


def painted(draft: Draft) -> Material:
    """A smooth, mostly light surface."""
    return Material(hsv(draft.between(0, 1), draft.between(0.0, 0.16), draft.between(0.65, 0.95)), gloss=0.1)


def fabric(draft: Draft, saturation: float = 0.6) -> Material:
    """Plain, striped, checked or mottled cloth of any color."""
    hue = draft.between(0, 1)
    color = hsv(hue, draft.between(0.05, saturation), draft.between(0.25, 0.9))
    second = hsv(hue + draft.between(-0.15, 0.15), draft.between(0.0, saturation), draft.between(0.3, 0.95))
    texture = draft.pick((Texture.PLAIN, Texture.PLAIN, Texture.STRIPES, Texture.CHECKS, Texture.CLOUDS))
    repeats = draft.between(4, 9)
    frequency = (repeats, 0.0, 0.0) if texture == Texture.STRIPES else (repeats, repeats, repeats)
    return Material(color, second, frequency, texture)


def bright(draft: Draft) -> Material:
    """Small things are of any color, some of them glossy."""
    color = hsv(draft.between(0, 1), draft.between(0.1, 0.9), draft.between(0.2, 0.95))
    return Material(color, gloss=draft.pick((0.0, 0.1, 0.6)))


def legs(piece: Piece, width: float, depth: float, height: float, material: Material, thick: float = 0.05) -> None:
    """Four legs under something `width` wide whose back is at y = 0."""
    for x in (-width / 2, width / 2 - thick):
        for y in (0.0, depth - thick):
            piece.box((x, x + thick), (y, y + thick), (0, height), material)


def bed(draft: Draft) -> None:
    """Frame, mattress, blanket, headboard and pillows, with nightstands where there is space."""
    width, length = draft.pick((1.0, 1.4, 1.7)), draft.between(1.95, 2.1)
    place = draft.against_wall(width + 0.1, length, 0.95)
    if place is None:
        return
    frame, cloth, top = wood(draft), fabric(draft), draft.between(0.42, 0.58)
    half = width / 2
    piece = draft.piece("bed", place)
    piece.box((-half - 0.04, half + 0.04), (0, 0.06), (0, draft.between(0.75, 1.15)), frame)
    piece.box((-half, half), (0.06, length), (0.08, top - 0.18), frame)
    piece.box((-half + 0.02, half - 0.02), (0.06, length - 0.02), (top - 0.18, top), WHITE)
    turned = draft.between(0.5, 0.9)
    piece.box((-half - 0.015, half + 0.015), (turned, length + 0.01), (top - 0.25, top + 0.04), cloth)
    slip = fabric(draft, 0.35)
    for x in (-half / 2, half / 2) if width > 1.2 else (0.0,):
        pillow = draft.piece("objects", place.at(x + draft.between(-0.04, 0.04), 0.3, top, draft.between(-0.15, 0.15)))
        pillow.ball((-0.33, 0.33), (-0.22, 0.22), (-0.04, 0.17), slip)
    for side in (-1, 1):
        stand = place.at(side * (half + 0.35), 0)
        if draft.chance(0.75) and draft.claim(stand.at(0, 0.2), 0.48, 0.38):
            nightstand(draft, stand, frame)


def nightstand(draft: Draft, place: Place, material: Material) -> None:
    """A small chest beside a bed, with a lamp or a book on it."""
    height = draft.between(0.42, 0.55)
    cabinet(draft.piece("furniture", place), 0.44, 0.38, height, 2, material)
    if draft.chance(0.65):
        lamp(draft, place.at(0, 0.19, height), draft.between(0.35, 0.5))
    else:
        books_lying(draft, place.at(0, 0.19, height))


def cabinet(piece: Piece, width: float, depth: float, height: float, drawers: int, material: Material) -> None:
    """A body with fronts that stand out a little, and handles."""
    half = width / 2
    piece.box((-half, half), (0, depth - 0.02), (0.0, height), material)
    front = material._replace(color=scaled(material.color, 1.15), second=scaled(material.second, 1.15))
    each = (height - 0.08) / drawers
    for i in range(drawers):
        low = 0.05 + i * each
        piece.box((-half + 0.015, half - 0.015), (depth - 0.02, depth), (low + 0.01, low + each - 0.01), front)
        piece.box((-0.06, 0.06), (depth, depth + 0.025), (low + each * 0.72, low + each * 0.72 + 0.02), METAL)


def dresser(draft: Draft) -> None:
    """A chest of drawers with things on it."""
    width, depth, height = draft.between(0.8, 1.3), draft.between(0.42, 0.5), draft.between(0.72, 0.95)
    place = draft.against_wall(width, depth, height + 0.35)
    if place is None:
        return
    cabinet(draft.piece("furniture", place), width, depth, height, draft.pick((3, 4)), wood(draft))
    clutter(draft, place.at(0, depth / 2, height), width, depth, 2)


def wardrobe(draft: Draft) -> None:
    """Tall, with two doors."""
    width, depth, height = draft.between(0.95, 1.5), draft.between(0.52, 0.6), draft.between(1.85, 2.15)
    place = draft.against_wall(width, depth, height)
    if place is None:
        return
    body = wood(draft, along=2)
    piece = draft.piece("furniture", place)
    half = width / 2
    piece.box((-half, half), (0, depth - 0.02), (0, height), body)
    door = body._replace(color=scaled(body.color, 1.15), second=scaled(body.second, 1.15))
    for side in (-1, 1):
        x = sorted((side * 0.008, side * (half - 0.02)))
        piece.box((x[0], x[1]), (depth - 0.02, depth), (0.06, height - 0.04), door)
        piece.box((side * 0.05 - 0.012, side * 0.05 + 0.012), (depth, depth + 0.03), (0.9, 1.15), METAL)


def bookshelf(draft: Draft) -> None:
    """Boards with rows of books between them."""
    width, depth = draft.between(0.7, 1.1), draft.between(0.26, 0.34)
    shelves = draft.pick((3, 4, 5))
    height = shelves * 0.36 + 0.04
    place = draft.against_wall(width, depth, height)
    if place is None:
        return
    material, half = wood(draft), width / 2
    piece = draft.piece("furniture", place)
    piece.box((-half, half), (0, 0.02), (0, height), material._replace(color=scaled(material.color, 0.6)))
    for x in (-half, half - 0.025):
        piece.box((x, x + 0.025), (0, depth), (0, height), material)
    for i in range(shelves + 1):
        piece.box((-half, half), (0, depth), (i * 0.36, i * 0.36 + 0.025), material)
    for i in range(shelves):
        inside = place.at(0, 0, i * 0.36 + 0.025)
        if draft.chance(0.85):
            end = half - 0.05 if draft.chance(0.4) else draft.between(-0.1, half - 0.1)
            books_standing(draft, inside, -half + 0.03, end, depth)
        else:
            clutter(draft, inside.at(0, depth / 2), width - 0.2, depth, 1, tallest=0.28)


def books_standing(draft: Draft, place: Place, start: float, end: float, depth: float) -> None:
    """A row of spines of two heights."""
    piece = draft.piece("books", place)
    middle = start + (end - start) * draft.between(0.35, 0.75)
    for low, high in ((start, middle), (middle, end)):
        hue, height = draft.between(0, 1), draft.between(0.2, 0.3)
        spines = Material(
            hsv(hue, 0.5, 0.35), hsv(hue + 0.4, 0.45, 0.95), (draft.between(22, 34), 0.0, 0.0), Texture.SPINES
        )
        piece.box((low, high), (0.03, depth - draft.between(0.03, 0.08)), (0, height), spines)


def books_lying(draft: Draft, place: Place) -> None:
    """A pile of two or three."""
    top = 0.0
    piece = draft.piece("books", place._replace(yaw=place.yaw + draft.between(-0.5, 0.5)))
    for _ in range(draft.pick((2, 3))):
        thick, x, y = draft.between(0.02, 0.05), draft.between(0.08, 0.11), draft.between(0.11, 0.15)
        piece.box((-x, x), (-y, y), (top, top + thick), bright(draft)._replace(gloss=0.0))
        top += thick


def lamp(draft: Draft, place: Place, height: float) -> None:
    """Foot, stem and a shade that glows."""
    piece = draft.piece("objects", place)
    radius = 0.13 + 0.05 * height
    piece.cylinder(0, 0, (0, 0.025), radius * 0.6, METAL)
    piece.cylinder(0, 0, (0.025, height - 0.2), 0.014, METAL)
    warm = Material(hsv(0.1, draft.between(0.1, 0.4), 0.95), glow=draft.pick((0.0, 0.5)))
    piece.cylinder(0, 0, (height - 0.24, height), radius, warm)


def floor_lamp(draft: Draft) -> None:
    """In a corner or at a wall."""
    place = draft.against_wall(0.4, 0.4, 1.6)
    if place is not None:
        lamp(draft, place.at(0, 0.2), draft.between(1.4, 1.7))


def plant(draft: Draft, place: Place | None = None, size: float = 1.0) -> None:
    """A pot with three green lumps."""
    place = place or draft.against_wall(0.5, 0.5, 1.2)
    if place is None:
        return
    place = place if size < 1 else place.at(0, 0.25)
    piece = draft.piece("objects", place)
    pot, tall = 0.28 * size, draft.between(0.4, 0.7) * size
    piece.cylinder(0, 0, (0, pot), 0.14 * size, bright(draft))
    green = hsv(draft.between(0.22, 0.36), draft.between(0.4, 0.8), draft.between(0.25, 0.6))
    leaves = Material(green, scaled(green, 0.35), (14.0 / size**0.5,) * 3, Texture.CLOUDS)
    for _ in range(3):
        x, y = draft.between(-0.1, 0.1) * size, draft.between(-0.1, 0.1) * size
        wide, top = draft.between(0.13, 0.2) * size, pot + tall * draft.between(0.6, 1.0)
        piece.ball((x - wide, x + wide), (y - wide, y + wide), (pot - 0.03 * size, top), leaves)


def clutter(draft: Draft, place: Place, width: float, depth: float, count: int, tallest: float = 0.45) -> None:
    """Things side by side on a surface, of which `place` is the middle."""
    for i in range(count):
        x = ((i + 0.5) / count - 0.5) * width * 0.8 + draft.between(-0.04, 0.04)
        here = place.at(x, draft.between(-0.15, 0.15) * depth)
        kind = draft.pick(("bottle", "bowl", "box", "books", "plant", "lamp"))
        if kind == "books":
            books_lying(draft, here)
        elif kind == "lamp" and tallest > 0.4:
            lamp(draft, here, draft.between(0.35, 0.45))
        elif kind == "plant":
            plant(draft, here, size=draft.between(0.25, 0.4))
        else:
            thing(draft, here, kind)


def thing(draft: Draft, place: Place, kind: str) -> None:
    """A bottle, a bowl of fruit, or a box."""
    piece = draft.piece("objects", place._replace(yaw=place.yaw + draft.between(-0.6, 0.6)))
    if kind == "bottle":
        glass, height = bright(draft), draft.between(0.14, 0.22)
        piece.cylinder(0, 0, (0, height), 0.04, glass)
        piece.cylinder(0, 0, (height, height + 0.07), 0.014, glass)
    elif kind == "bowl":
        piece.cylinder(0, 0, (0, 0.06), draft.between(0.09, 0.14), painted(draft))
        for x in (-0.045, 0.045):
            piece.ball((x - 0.042, x + 0.042), (-0.042, 0.042), (0.02, 0.105), bright(draft))
    else:
        x, y, z = draft.between(0.06, 0.16), draft.between(0.05, 0.1), draft.between(0.06, 0.24)
        piece.box((-x, x), (-y, y), (0, z), bright(draft))


def sofa(draft: Draft) -> Place | None:
    """Base, seat cushions, back and arms; the coffee table goes in front of it."""
    width, depth = draft.pick((0.95, 1.6, 2.1)), draft.between(0.8, 0.92)
    place = draft.against_wall(width, depth, 0.85)
    if place is None:
        return None
    cloth, half = fabric(draft), width / 2
    if cloth.texture == Texture.CHECKS:
        cloth = cloth._replace(texture=Texture.PLAIN)
    light = cloth._replace(color=scaled(cloth.color, 1.18))
    seat, back, arm = draft.between(0.38, 0.45), draft.between(0.75, 0.9), draft.between(0.12, 0.2)
    piece = draft.piece("sofa", place)
    piece.box((-half, half), (0.02, depth - 0.03), (0.05, seat - 0.12), cloth)
    piece.box((-half + arm, half - arm), (0.02, 0.24), (seat - 0.12, back), cloth)
    for side in (-1, 1):
        x = sorted((side * half, side * (half - arm)))
        piece.box((x[0], x[1]), (0.02, depth), (0.05, seat + 0.18), cloth)
    cushions = max(1, round(width / 0.75))
    each = (width - 2 * arm) / cushions
    for i in range(cushions):
        left = -half + arm + i * each
        piece.box((left + 0.01, left + each - 0.01), (0.2, depth), (seat - 0.12, seat), light)
    for side in (-1, 1):
        if draft.chance(0.5) and width > 1:
            x = side * (half - arm - 0.24)
            pillow = draft.piece("objects", place.at(x, 0.33, seat))
            pillow.ball((-0.21, 0.21), (-0.09, 0.11), (0, 0.38), fabric(draft, 0.9))
    return place.at(0, depth)


def sitting_group(draft: Draft) -> None:
    """A sofa, and a low table in front of it."""
    front = sofa(draft)
    if front is None:
        return
    width, depth, height = draft.between(0.7, 1.1), draft.between(0.45, 0.6), draft.between(0.36, 0.46)
    place = front.at(0, 0.35)
    if draft.claim(place.at(0, depth / 2), width, depth):
        table_at(draft, place, width, depth, height)
        clutter(draft, place.at(0, depth / 2, height), width, depth, draft.pick((1, 2, 3)), tallest=0.3)


def table_at(draft: Draft, place: Place, width: float, depth: float, height: float) -> None:
    """A top on four legs; its back is at y = 0."""
    material = wood(draft)
    piece = draft.piece("table", place)
    piece.box((-width / 2, width / 2), (0, depth), (height - 0.04, height), material)
    legs(piece.shifted(0, 0.03), width - 0.06, depth - 0.06, height - 0.04, material)


def chair(draft: Draft, place: Place, material: Material) -> None:
    """Legs, a seat and a back that leans; the middle of the seat is at the place, its front along y."""
    width, seat = 0.42, draft.between(0.43, 0.48)
    piece = draft.piece("chair", place.at(0, -0.21))
    legs(piece, width, 0.42, seat - 0.04, material, thick=0.035)
    piece.box((-width / 2, width / 2), (0, 0.44), (seat - 0.04, seat), material)
    piece.box((-width / 2, width / 2), (-0.035, 0.0), (seat + 0.08, seat + 0.48), material, tilt=0.12)


def office_chair(draft: Draft, place: Place) -> None:
    """Five-legged in life: a disc, a column, a padded seat and back, two arms."""
    cloth = Material(hsv(draft.between(0, 1), draft.between(0, 0.6), draft.between(0.1, 0.45)))
    piece = draft.piece("chair", place)
    piece.cylinder(0, 0, (0.03, 0.08), 0.27, DARK)
    piece.cylinder(0, 0, (0.08, 0.42), 0.035, METAL)
    piece.box((-0.24, 0.24), (-0.23, 0.24), (0.42, 0.5), cloth)
    piece.box((-0.22, 0.22), (-0.29, -0.22), (0.58, 1.05), cloth, tilt=0.1)
    for x in (-0.27, 0.23):
        piece.box((x, x + 0.04), (-0.15, 0.15), (0.66, 0.69), DARK)


def armchair(draft: Draft) -> None:
    """A chair for reading, anywhere on the floor."""
    place = draft.on_floor(0.75, 0.75)
    if place is None:
        return
    cloth = fabric(draft)
    piece = draft.piece("chair", place.at(0, -0.35))
    piece.box((-0.36, 0.36), (0.05, 0.68), (0.1, 0.42), cloth)
    piece.box((-0.34, 0.34), (0.0, 0.14), (0.3, 0.9), cloth, tilt=0.12)
    for x in (-0.37, 0.25):
        piece.box((x, x + 0.12), (0.08, 0.7), (0.1, 0.6), cloth)


def spare_chair(draft: Draft) -> None:
    """A wooden chair somewhere."""
    place = draft.on_floor(0.5, 0.55)
    if place is not None:
        chair(draft, place, wood(draft, along=2))


def dining_table(draft: Draft) -> None:
    """A table, chairs on its sides, things on it."""
    width, depth, height = draft.between(1.0, 1.7), draft.between(0.75, 0.95), draft.between(0.7, 0.77)
    place = draft.on_floor(width + 0.1, depth + 0.9)
    if place is None:
        return
    table_at(draft, place.at(0, -depth / 2), width, depth, height)
    material = wood(draft, along=2)
    for side in (-1, 1):
        for x in (-width / 4, width / 4):
            if draft.chance(0.8):
                turn = (np.pi if side > 0 else 0.0) + draft.between(-0.2, 0.2)
                chair(draft, place.at(x, side * (depth / 2 + draft.between(0.05, 0.25)), 0, turn), material)
    clutter(draft, place.at(0, 0, height), width, depth, draft.pick((1, 2, 3)))
    if draft.chance(0.6):
        pendant(draft, place)


def pendant(draft: Draft, place: Place) -> None:
    """A lamp that hangs from the ceiling."""
    height = draft.size[2]
    piece = draft.piece("objects", place._replace(z=0.0))
    low = draft.between(1.55, 1.8)
    piece.cylinder(0, 0, (low + 0.2, height), 0.008, DARK)
    piece.cylinder(0, 0, (low, low + 0.22), draft.between(0.12, 0.2), bright(draft)._replace(glow=0.35))


def desk(draft: Draft) -> None:
    """A table at a wall with a screen, an office chair before it, and things on it."""
    width, depth, height = draft.between(1.1, 1.7), draft.between(0.6, 0.75), draft.between(0.7, 0.76)
    place = draft.against_wall(width, depth + 0.75, 1.25)
    if place is None:
        return
    table_at(draft, place, width, depth, height)
    if draft.chance(0.6):
        drawers = draft.piece("furniture", place.at(width / 2 - 0.28, 0.06))
        cabinet(drawers, 0.4, depth - 0.12, height - 0.06, 3, painted(draft))
    screen(draft, place.at(draft.between(-0.15, 0.1), 0.2, height, draft.between(-0.2, 0.2)))
    keyboard = draft.piece("objects", place.at(-0.05, depth - 0.22, height))
    keyboard.box((-0.21, 0.21), (-0.07, 0.07), (0, 0.02), draft.pick((DARK, WHITE)))
    clutter(draft, place.at(-width / 2 + 0.2, depth / 2, height), 0.2, depth, 1)
    clutter(draft, place.at(width / 2 - 0.2, depth / 2, height), 0.2, depth, 1)
    turn = np.pi + draft.between(-0.7, 0.7)
    office_chair(draft, place.at(draft.between(-0.15, 0.15), depth + 0.3, 0, turn))


def screen(draft: Draft, place: Place) -> None:
    """A computer's, on its foot."""
    piece = draft.piece("tv", place)
    half, tall = draft.between(0.24, 0.34), draft.between(0.3, 0.38)
    piece.box((-0.11, 0.11), (-0.09, 0.09), (0, 0.015), DARK)
    piece.box((-0.03, 0.03), (-0.05, -0.03), (0.015, 0.25), DARK)
    piece.box((-half, half), (-0.025, 0.0), (0.11, 0.13 + tall), DARK)
    piece.box((-half + 0.015, half - 0.015), (0.0, 0.004), (0.125, 0.115 + tall), picture_on(draft))


def picture_on(draft: Draft) -> Material:
    """A screen: off and dark, or on."""
    if draft.chance(0.5):
        return SCREEN
    hue = draft.between(0, 1)
    lit = Material(hsv(hue, 0.6, 0.8), hsv(hue + 0.4, 0.5, 0.35), (3.0, 3.0, 4.0), Texture.CLOUDS)
    return lit._replace(gloss=0.6, glow=0.45)


def television(draft: Draft) -> None:
    """A set on a low cabinet."""
    width, height = draft.between(1.1, 1.6), draft.between(0.4, 0.55)
    place = draft.against_wall(width, 0.42, 1.35)
    if place is None:
        return
    cabinet(draft.piece("furniture", place), width, 0.42, height, 1, wood(draft))
    half = draft.between(0.4, 0.58)
    tall = half * 1.15
    piece = draft.piece("tv", place.at(0, 0.2, height))
    piece.box((-0.2, 0.2), (-0.1, 0.1), (0, 0.02), DARK)
    piece.box((-0.05, 0.05), (-0.02, 0.01), (0.02, 0.1), DARK)
    piece.box((-half, half), (-0.03, 0.02), (0.07, 0.07 + tall), DARK)
    piece.box((-half + 0.025, half - 0.025), (0.02, 0.024), (0.095, 0.045 + tall), picture_on(draft))


def kitchen_counter(draft: Draft) -> None:
    """Base cabinets under a worktop, wall cabinets above, a fridge beside."""
    width, height = draft.between(1.5, 2.4), 0.9
    place = draft.against_wall(width, 0.62, 2.1)
    if place is None:
        return
    material, half = draft.pick((wood(draft, along=2), painted(draft))), width / 2
    doors = round(width / 0.55)
    piece = draft.piece("furniture", place)
    piece.box((-half, half), (0, 0.56), (0.08, height - 0.04), material)
    piece.box((-half - 0.02, half + 0.02), (0, 0.62), (height - 0.04, height), stone(draft))
    front = material._replace(color=scaled(material.color, 1.15), second=scaled(material.second, 1.15))
    for i in range(doors):
        left = -half + i * width / doors
        piece.box((left + 0.01, left + width / doors - 0.01), (0.56, 0.58), (0.12, height - 0.07), front)
    upper = draft.piece("furniture", place)
    for i in range(doors):
        left = -half + i * width / doors
        upper.box((left + 0.006, left + width / doors - 0.006), (0, 0.34), (1.4, 2.05), front)
    clutter(draft, place.at(0, 0.3, height), width, 0.5, draft.pick((2, 3)), tallest=0.4)
    fridge = place.at(half + 0.38, 0)
    if draft.claim(fridge.at(0, 0.33), 0.62, 0.64):
        body = Material((0.62, 0.62, 0.62), gloss=0.35)
        piece = draft.piece("furniture", fridge)
        piece.box((-0.3, 0.3), (0, 0.6), (0.03, 1.75), body)
        for low, high in ((0.06, 1.1), (1.12, 1.74)):
            piece.box((-0.29, 0.29), (0.6, 0.64), (low, high), body)
            piece.box((-0.25, -0.22), (0.64, 0.68), (high - 0.4, high - 0.1), METAL)


def stone(draft: Draft) -> Material:
    """A mottled worktop."""
    value = draft.between(0.25, 0.8)
    return Material(hsv(0.1, 0.1, value), hsv(0.1, 0.12, value * 0.7), (9.0, 9.0, 9.0), Texture.CLOUDS, gloss=0.4)


def window(draft: Draft) -> None:
    """A frame with panes full of sky, and curtains or a blind; the first one lights the room."""
    width, bottom, top = draft.between(0.9, 1.7), draft.between(0.8, 1.0), draft.between(1.9, 2.15)
    place = draft.on_wall(width + 0.5, bottom - 0.1, top + 0.1)
    if place is None:
        return
    half, height = width / 2, top - bottom
    piece = draft.piece("window", place)
    piece.box((-half - 0.06, half + 0.06), (0, 0.035), (-0.06, height + 0.06), WHITE)
    sky = Material((0.55, 0.62, 0.5), (0.8, 0.92, 1.0), (0.0, 0.0, 1 / height), Texture.GRADIENT, gloss=1.0, glow=1.5)
    sky = sky._replace(color=hsv(draft.between(0.2, 0.6), draft.between(0.05, 0.3), draft.between(0.6, 0.9)))
    for left, right in ((-half, -0.025), (0.025, half)):
        piece.box((left, right), (0.035, 0.04), (0, height), sky)
    cover = draft.pick(("curtains", "curtains", "blind", "none"))
    cloth = fabric(draft)
    folds = Material(cloth.color, scaled(cloth.color, 0.55), (11.0, 0.0, 0.0), Texture.WOOD)
    if cover == "curtains":
        for side in (-1, 1):
            x = sorted((side * (half - draft.between(0.05, 0.2)), side * (half + 0.22)))
            piece.box((x[0], x[1]), (0.05, 0.1), (-min(bottom - 0.04, draft.pick((0.15, 1.0))), height + 0.1), folds)
    elif cover == "blind":
        slats = Material((0.7, 0.68, 0.62), (0.4, 0.39, 0.36), (0.0, 0.0, 18.0), Texture.STRIPES, glow=0.15)
        piece.box((-half, half), (0.045, 0.06), (height * draft.between(0.3, 0.8), height), slats)
    draft.window = draft.window or place.at(0, 0.35, height / 2)


def picture(draft: Draft) -> None:
    """A frame, a mount and something painted."""
    half, height, bottom = draft.between(0.16, 0.45), draft.between(0.3, 0.7), draft.between(1.2, 1.5)
    place = draft.on_wall(2 * half, bottom, bottom + height)
    if place is None:
        return
    piece = draft.piece("picture", place)
    piece.box((-half, half), (0, 0.025), (0, height), draft.pick((DARK, WHITE, wood(draft))))
    rim = draft.between(0.02, 0.05)
    hue = draft.between(0, 1)
    repeats = draft.between(2.5, 6)
    art = Material(
        hsv(hue, draft.between(0.2, 0.8), draft.between(0.5, 0.95)),
        hsv(hue + draft.between(0.2, 0.6), draft.between(0.2, 0.8), draft.between(0.15, 0.6)),
        (repeats, 1.0, repeats),
        draft.pick((Texture.CLOUDS, Texture.CLOUDS, Texture.STRIPES, Texture.GRADIENT, Texture.WOOD)),
        gloss=0.3,
    )
    piece.box((-half + rim, half - rim), (0.025, 0.03), (rim, height - rim), art)


def rug(draft: Draft) -> None:
    """Counts as floor, as in NYUv2."""
    w, d, _ = draft.size
    x, y = draft.between(0.5, 1.1), draft.between(0.6, 1.3)
    middle = Place(draft.between(0.4, 0.6) * w, draft.between(0.4, 0.6) * d, 0.0, draft.between(-0.15, 0.15))
    cloth = fabric(draft)
    piece = draft.piece("floor", middle)
    piece.box((-x, x), (-y, y), (0, 0.008), cloth._replace(color=scaled(cloth.color, 0.7)))
    piece.box((-x + 0.08, x - 0.08), (-y + 0.08, y - 0.08), (0, 0.012), cloth)


def door(draft: Draft) -> None:
    """Counts as wall, as in NYUv2."""
    place = draft.on_wall(1.0, 0.0, 2.1)
    if place is None:
        return
    draft.claim(place.at(0, 0.4), 0.9, 0.8)
    material = wood(draft, along=2)
    piece = draft.piece("wall", place)
    piece.box((-0.48, 0.48), (0, 0.025), (0, 2.08), material._replace(color=scaled(material.color, 1.2)))
    piece.box((-0.4, 0.4), (0.025, 0.04), (0, 2.0), material)
    piece.box((0.3, 0.35), (0.04, 0.09), (1.0, 1.03), METAL)


def shaft(draft: Draft) -> None:
    """A corner, a pillar or a chimney breast of wall: what makes a room more than a box."""
    if not draft.chance(0.45):
        return
    number = draft.pick((0, 1, 2, 3))
    width, depth = draft.between(0.3, 1.1), draft.between(0.15, 0.6)
    room = draft.wall_length(number) - width
    along = width / 2 + draft.pick((0.0, 0.0, room, draft.between(0, room)))
    place = draft.wall(number, along)
    if draft.claim(place.at(0, depth / 2), width, depth):
        plaster = Material(*draft.rows[number][-len(Material._fields) :])
        draft.piece("wall", place).box((-width / 2, width / 2), (-0.1, depth), (0, draft.size[2] + 0.1), plaster)
        draft.hang(number, along, width)


def skirting(draft: Draft) -> None:
    """Boards along the walls' feet."""
    board = draft.pick((WHITE, wood(draft)))
    for number in range(4):
        half = draft.wall_length(number) / 2
        draft.piece("wall", draft.wall(number, half)).box((-half, half), (0, 0.012), (0, 0.08), board)


def ceiling_lamp(draft: Draft) -> None:
    """A flat disc."""
    w, d, height = draft.size
    piece = draft.piece("objects", Place(w / 2, d / 2, height))
    piece.cylinder(0, 0, (-0.07, 0), draft.between(0.12, 0.22), Material((0.9, 0.87, 0.8), glow=0.9))


Furnish = Callable[[Draft], object]

FURNISHINGS: dict[str, tuple[tuple[float, Furnish], ...]] = {
    "bedroom": (
        (1.0, window),
        (1.0, bed),
        (0.7, wardrobe),
        (0.6, dresser),
        (0.8, picture),
        (0.4, bookshelf),
        (0.2, television),
        (0.5, spare_chair),
        (0.7, rug),
        (0.5, picture),
        (0.2, plant),
    ),
    "living room": (
        (1.0, window),
        (1.0, sitting_group),
        (0.85, television),
        (0.6, bookshelf),
        (0.9, picture),
        (0.6, armchair),
        (0.6, picture),
        (0.5, floor_lamp),
        (0.5, plant),
        (0.8, rug),
        (0.4, window),
        (0.4, sofa),
    ),
    "office": (
        (0.8, window),
        (1.0, desk),
        (0.9, bookshelf),
        (0.6, desk),
        (0.6, bookshelf),
        (0.5, dresser),
        (0.6, picture),
        (0.4, plant),
        (0.3, spare_chair),
        (0.3, floor_lamp),
    ),
    "dining room": (
        (0.9, window),
        (0.8, kitchen_counter),
        (1.0, dining_table),
        (0.4, dresser),
        (0.7, picture),
        (0.5, plant),
        (0.3, picture),
        (0.3, rug),
        (0.3, bookshelf),
    ),
}
"""The pieces of each kind of room with their probabilities, in the order in which they are placed."""

FEW: dict[str, tuple[tuple[float, Furnish], ...]] = {
    "bedroom": ((1.0, bed), (0.7, wardrobe), (0.8, window)),
    "living room": ((1.0, sofa), (0.7, sofa), (0.8, window)),
    "office": ((1.0, bookshelf), (0.7, bookshelf), (0.8, window)),
    "dining room": ((1.0, dining_table), (0.8, window)),
}
"""As `FURNISHINGS`, of large pieces alone."""


class Style(NamedTuple):
    """What rooms are furnished with."""

    pieces: Mapping[str, tuple[tuple[float, Furnish], ...]]
    classes: tuple[str, ...]
    """Of what is in the room; what is of other classes is left out."""
    smallest_object: float = 0.0
    """Minimum length of an object's largest part in meters; smaller objects are left out."""
    largest_room: float = math.inf
    """Maximum width and depth of a room in meters: the smaller it is, the nearer is everything."""
    looks_at_first: bool = False
    """Whether the whole of the first piece is in view, by which the kind of room can be told."""


STYLES: Mapping[str, Style] = {
    "full": Style(FURNISHINGS, CLASSES),
    "sparse": Style(
        FEW,
        (*SHELL, "bed", "furniture", "sofa", "table", "window"),
        smallest_object=0.7,
        largest_room=4.2,
        looks_at_first=True,
    ),
}


def draw(rng: np.random.Generator, style: Style = STYLES["full"]) -> Scene:
    """A scene from a seeded generator."""
    draft = Draft(rng, style.largest_room)
    room = draft.pick((0, 1, 2, 3))
    shell(draft)
    shaft(draft)
    if draft.chance(0.6):
        skirting(draft)
    if draft.chance(0.6):
        door(draft)
    for probability, furnish in style.pieces[ROOMS[room]]:
        if draft.chance(probability):
            furnish(draft)
    if draft.chance(0.6):
        ceiling_lamp(draft)
    parts = draft.parts(style.classes, style.smallest_object)
    if not parts["instance"].any():  # nothing found its place
        return draw(rng, style)
    position, axes, view = look(draft, parts, style.looks_at_first)
    lights, colors, ambient = lighting(draft)
    return Scene(
        room=room,
        size=np.array(draft.size),
        parts=parts,
        position=position,
        axes=axes,
        view=view,
        lights=lights,
        light_colors=colors,
        ambient=ambient,
        brightness=draft.between(0.14, 0.26),
        noise=draft.between(0.008, 0.03),
        noise_seed=int(draft.between(0, 2**31)),
    )


def shell(draft: Draft) -> None:
    """Four walls, the floor and the ceiling."""
    hue = draft.between(0, 1)
    saturation, value = draft.between(0, 0.3), draft.between(0.6, 0.95)
    paint = hsv(hue, saturation, value)
    texture = draft.pick((Texture.PLAIN, Texture.PLAIN, Texture.PLAIN, Texture.STRIPES, Texture.CLOUDS))
    second = scaled(paint, draft.between(0.75, 0.92))
    repeats = draft.between(1.5, 5)
    wall = Material(paint, second, (repeats, repeats, 0.0 if texture == Texture.STRIPES else repeats), texture)
    accent = Material(hsv(hue + draft.between(-0.2, 0.2), draft.between(0.1, 0.6), draft.between(0.35, 0.9)))
    accented = draft.pick((0, 1, 2, 3, None, None, None, None))
    white = Material(hsv(0.12, draft.between(0, 0.06), draft.between(0.85, 0.97)))
    w, d, h = draft.size
    half, middle = (w / 2, d / 2, h / 2), (w / 2, d / 2, h / 2)
    materials = [accent if i == accented else wall for i in range(4)] + [flooring(draft), white]
    for i, material in enumerate(materials):
        label = "wall" if i < 4 else ("floor", "ceiling")[i - 4]
        piece = draft.piece(label, Place(0, 0))
        draft.rows.append((Shape.FACE, piece.label, 0, middle, half, 0.0, 0.0, *material))


def flooring(draft: Draft) -> Material:
    """Planks, tiles or carpet."""
    kind = draft.pick(("planks", "planks", "tiles", "carpet"))
    if kind == "planks":
        color = hsv(draft.between(0.05, 0.1), draft.between(0.25, 0.6), draft.between(0.35, 0.8))
        frequency = draft.pick(((7.0, 0.9, 0.0), (0.9, 7.0, 0.0)))
        return Material(color, scaled(color, 0.5), frequency, Texture.PLANKS, gloss=0.15)
    hue, value = draft.between(0, 1), draft.between(0.35, 0.85)
    color = hsv(hue, draft.between(0, 0.25), value)
    if kind == "tiles":
        repeats = draft.between(1.5, 3.5)
        return Material(color, scaled(color, draft.between(0.5, 0.9)), (repeats, repeats, 0.0), Texture.CHECKS, 0.25)
    return Material(color, scaled(color, 0.8), (17.0, 17.0, 0.0), Texture.CLOUDS)


def lighting(draft: Draft) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A lamp under the ceiling, a window (or another lamp), and what the walls scatter."""
    w, d, h = draft.size
    lamp_at = Place(w / 2, d / 2, h - 0.2)
    other = draft.window or Place(draft.between(0.3, 0.7) * w, draft.between(0.3, 0.7) * d, h - draft.between(0.3, 0.6))
    warm = hsv(0.1, draft.between(0.05, 0.4), 1.0)
    cold = hsv(0.6, draft.between(0.0, 0.2), 1.0) if draft.window else warm
    balance = draft.between(0.25, 0.8)
    positions = np.array([lamp_at[:3], other[:3]])
    colors = np.array([scaled(warm, balance), scaled(cold, 1 - balance)])
    return positions, colors, np.array(scaled(warm, draft.between(0.3, 0.55)))

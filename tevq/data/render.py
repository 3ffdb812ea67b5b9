"""Rendering: scenes and single items as images, and the crops that the classifier sees.

All tensor operations, on the device of the items. Images are float32 (B, 3, S, S) in [-1, 1]; the
background is black (-1), ink is the grey value of the item times the RGB of its colour. The size of
the items decides that of the scene: items of 28 pixels stand in cells of 32 of a scene of 64, and
larger scenes are the same picture with more pixels.
"""

from typing import Any

import numpy as np
import torch

from tevq.data.captions import UNUSED
from tevq.data.source import SourceImages

IMAGE_SIZE, CELL = 64, 32  # pixels, of the paper's scenes
RGB = ((1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1))  # of each colour; ink has full intensity


def item_size(size: int) -> int:
    """Side of the items in scenes of `size` pixels, a multiple of 32."""
    return size * 7 // 16


def scene_size(item: int) -> int:
    """Side of the scenes that items of `item` pixels, a multiple of 14, stand in."""
    return item * 16 // 7


def offsets(size: int = IMAGE_SIZE) -> tuple[tuple[int, int], ...]:
    """(row, column) of the item at every place, in scenes of `size` pixels."""
    near, far, middle = size // 32, size // 2 + size // 32, size // 4 + size // 32
    return (near, near), (near, far), (far, near), (far, far), (middle, middle)


OFFSETS = offsets()


def render(scenes: Any, items: SourceImages, index=slice(None)) -> torch.Tensor:
    """Images of scenes: float32 (B, 3, S, S) in [-1, 1], black = -1.

    scenes: a `scenes.Scenes`; items: of the split's part, on the device where to draw; index:
    slice or (B,) indices of scenes.
    """
    size = scene_size(items.images.shape[-1])
    place = scenes.place[index]
    scene, slot = np.nonzero(place != UNUSED)
    offset = np.array(offsets(size))[place[scene, slot]]
    # found with numpy: on a GPU one would have to wait for how many there are
    row, channel = np.nonzero(np.array(RGB)[scenes.colour[index][scene, slot]])
    numbers = np.stack((scenes.item[index][scene, slot][row], channel, *offset[row].T, scene[row]))
    canvas = _blank(len(place), size, items.images.device)
    item, channel, top, left, scene = torch.from_numpy(numbers.astype(np.int64)).to(
        items.images.device, non_blocking=True)
    ink = _ink(items.images[item])
    _windows(canvas, ink.shape[-1])[scene, channel, top, left] = ink  # faster than `draw`
    return canvas


def draw(images: torch.Tensor, colour: torch.Tensor, offset: torch.Tensor, scene: torch.Tensor,
         count: int) -> torch.Tensor:
    """Items at any pixel offsets: float32 (count, 3, S, S) in [-1, 1].

    images: uint8 (M, s, s); colour: (M,); offset: (M, 2) row and column of the top left pixel,
    any whole numbers; scene: (M,), the image each item goes to. What lies outside is cut off;
    where items of one scene overlap, the brighter value of each channel shows.
    """
    edge = images.shape[-1]  # width of a border for what lies outside; it is cut off
    corner, size = offset.clamp(-edge, scene_size(edge)) + edge, scene_size(edge) + 2 * edge
    canvas, steps = _blank(count, size, images.device), torch.arange(edge, device=images.device)
    item, channel = torch.tensor(RGB, device=images.device)[colour].nonzero(as_tuple=True)
    row = corner[item, 0, None, None] + steps[:, None]  # (inked channels, s, 1)
    column = corner[item, 1, None, None] + steps  # (inked channels, 1, s)
    place = ((scene[item] * 3 + channel)[:, None, None] * size + row) * size + column
    canvas.view(-1).scatter_reduce_(0, place.flatten(), _ink(images[item]).flatten(), "amax")
    return canvas[:, :, edge:-edge, edge:-edge].contiguous()


def crop(images: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """The pixels of one place per image, (B, C, s, s), as the classifier sees them.

    images: (B, C, S, S); place: (B,), index into PLACES.
    """
    size = images.shape[-1]
    offset = torch.tensor(offsets(size), device=images.device)[place.to(images.device, torch.int64)]
    rows = torch.arange(len(images), device=images.device)
    return _windows(images, item_size(size))[rows, :, offset[:, 0], offset[:, 1]]


def _blank(count: int, size: int, device) -> torch.Tensor:
    return torch.full((count, 3, size, size), -1.0, device=device)


def _windows(images: torch.Tensor, side: int) -> torch.Tensor:
    """View (B, C, rows, columns, side, side): the window at every offset."""
    return images.unfold(2, side, 1).unfold(3, side, 1)


def _ink(images: torch.Tensor) -> torch.Tensor:
    """Grey values uint8 -> float32 in [-1, 1]."""
    return images.float().mul_(2 / 255).sub_(1)

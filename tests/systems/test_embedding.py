"""The embedding system: targets, loss and decode on hand-made maps; training to masks."""

import pytest
import torch
from torch import Tensor

from pixelwise.errors import UsageError
from pixelwise.ops import rle
from pixelwise.systems.embedding import (
    Embedding,
    EmbeddingConfig,
    EmbeddingRaw,
    paint_targets,
)
from pixelwise.types import IGNORE, ImageSize, InstanceTarget

K = 2


def build(**settings) -> Embedding:
    torch.manual_seed(0)
    tiny = {"num_classes": K, "backbone": "test_resnet", "decoder_widths": (16, 16, 16)}
    tiny |= {"embedding_dims": 2, "min_cells": 2}
    return Embedding(EmbeddingConfig(**{**tiny, **settings}))


def target(masks: Tensor, labels: list[int], crowd: list[bool] | None = None) -> InstanceTarget:
    crops = rle.crops_from_dense(masks)
    return InstanceTarget(
        boxes=crops.windows.float(),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=crops,
        crowd=torch.tensor(crowd or [False] * len(labels), dtype=torch.bool),
    )


def drawn(owner: Tensor, labels: list[int], places: list[list[float]]) -> EmbeddingRaw:
    """Certain maps: cell by cell the class and the place of its object; -1 is background."""
    classes = torch.tensor([*labels, K])[owner]  # [h, w]
    logits = 20.0 * torch.nn.functional.one_hot(classes, K + 1).permute(2, 0, 1)
    points = torch.tensor([*places, [0.0, 0.0]])[owner].permute(2, 0, 1)
    return EmbeddingRaw(logits[None], points[None].contiguous())


def stripes(*widths_and_owners: tuple[int, int], height: int = 8) -> Tensor:
    return torch.cat([torch.full((height, w), n) for w, n in widths_and_owners], dim=1)


def test_targets_on_a_hand_drawn_case() -> None:
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    masks[0, :, :2] = True  # a crowd region
    masks[1, 1:3, 1:3] = True  # a small object over the crowd and over the large one
    masks[2, 1:4, 1:5] = True
    classes, instances = paint_targets(target(masks, [1, 0, 1], [True, False, False]), (5, 6), K)
    pad, no = IGNORE, -1
    assert classes.tolist() == [
        [pad, pad, K, K, K, pad],
        [pad, 0, 0, 1, 1, pad],
        [pad, 0, 0, 1, 1, pad],
        [pad, 1, 1, 1, 1, pad],
        [pad] * 6,
    ]
    assert instances.tolist() == [
        [no] * 6,
        [no, 1, 1, 2, 2, no],
        [no, 1, 1, 2, 2, no],
        [no, 2, 2, 2, 2, no],
        [no] * 6,
    ]


def test_loss_of_maps_that_are_right_and_of_maps_that_are_not() -> None:
    owner = stripes((4, 0), (4, 1), (4, -1))  # cells of stride 4
    pixels = owner.repeat_interleave(4, 0).repeat_interleave(4, 1)
    truth = target(torch.stack([pixels == 0, pixels == 1]), [0, 0])
    net = build(variance_weight=2.0, distance_weight=3.0, regularisation_weight=0.5)
    images = torch.zeros(2, 3, 32, 48)

    def losses(places: list[list[float]]) -> dict[str, float]:
        raw = drawn(owner, [0, 0], places)
        net.forward = lambda _: EmbeddingRaw(*(x.repeat(2, 1, 1, 1) for x in raw))
        return {key: value.item() for key, value in net.loss(images, [truth, truth]).items()}

    right = losses([[2.0, 0.0], [-2.0, 0.0]])
    assert right["variance"] == right["distance"] == 0
    assert right["regularisation"] == pytest.approx(0.5 * 2)
    near = losses([[1.0, 0.0], [-1.0, 0.0]])
    assert near["distance"] == pytest.approx(3 * (3 - 2) ** 2), "the margin is 2 delta_d"
    assert near["class"] == pytest.approx(right["class"])

    mixed = drawn(1 - owner.clamp(min=0), [0, 0], [[2.0, 0.0], [-2.0, 0.0]])
    mixed.embeddings[0, 0, ::2] *= -1  # every second row takes the other object's place
    net.forward = lambda _: EmbeddingRaw(*(x.repeat(2, 1, 1, 1) for x in mixed))
    wrong = net.loss(images, [truth, truth])
    assert wrong["variance"].item() == pytest.approx(2 * (2 - 0.5) ** 2), "all are 2 from the mean"
    assert wrong["distance"].item() == pytest.approx(3 * 9), "and the means coincide"


def test_an_image_without_objects_halves_the_mean() -> None:
    owner = stripes((4, 0), (8, 1))
    pixels = owner.repeat_interleave(4, 0).repeat_interleave(4, 1)
    truth = target(torch.stack([pixels == 0, pixels == 1]), [0, 0])
    empty = target(torch.zeros(0, 32, 48), [])
    net = build()
    raw = drawn(owner, [0, 0], [[1.0, 0.0], [-1.0, 0.0]])
    net.forward = lambda _: EmbeddingRaw(*(x.repeat(2, 1, 1, 1) for x in raw))
    losses = net.loss(torch.zeros(2, 3, 32, 48), [truth, empty])
    assert losses["distance"].item() == pytest.approx(0.5)


def test_touching_objects_of_one_class_are_separated_to_the_pixel() -> None:
    owner = stripes((4, 0), (4, 1), (4, -1), (4, 2))
    raw = drawn(owner, [0, 0, 1], [[1.6, 0.0], [-1.6, 0.0], [1.6, 0.0]])
    found = build().decode(raw, [ImageSize.same((32, 64))])[0]
    assert found.scores.tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    order = found.boxes[:, 0].argsort()
    assert found.labels[order].tolist() == [0, 0, 1]
    assert found.boxes[order].tolist() == [[0, 0, 16, 32], [16, 0, 32, 32], [48, 0, 64, 32]]
    assert rle.areas(found.masks).tolist() == [16 * 32] * 3


def test_the_padding_is_cut_off_and_the_original_size_restored() -> None:
    owner = stripes((4, 0), (4, 1), (8, 2))  # the last stripe lies in the padding
    raw = drawn(owner, [0, 0, 0], [[1.6, 0.0], [-1.6, 0.0], [-1.6, 3.0]])
    size = ImageSize(original=(48, 64), content=(24, 32), input=(32, 64))
    found = build().decode(raw, [size])[0]
    order = found.boxes[:, 0].argsort()
    assert found.boxes[order].tolist() == [[0, 0, 32, 48], [32, 0, 64, 48]]


def test_a_pixel_far_from_every_cluster_belongs_to_none() -> None:
    owner = stripes((4, 0), (4, 1))
    raw = drawn(owner, [0, 0], [[0.0, 0.0], [16.0, 0.0]])
    found = build().decode(raw, [ImageSize.same((32, 32))])[0]
    # Pixels 14 to 17 lie between the middles of the two cells, at 2, 6, 10 and 14.
    order = found.boxes[:, 0].argsort()
    assert found.boxes[order].tolist() == [[0, 0, 14, 32], [18, 0, 32, 32]]


def test_small_clusters_are_dropped_and_the_best_are_kept() -> None:
    owner = stripes((4, 0), (4, 1), (4, 2))
    owner[0, 5] = 3
    raw = drawn(owner, [0, 0, 0, 0], [[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0], [0.0, -4.0]])
    raw.logits[:, 0, :, 4:8] = 1.0  # less certain
    size = [ImageSize.same((32, 48))]
    assert len(build(min_cells=2).decode(raw, size)[0]) == 3
    assert len(build(min_cells=1).decode(raw, size)[0]) == 4
    best = build(detections_per_image=2).decode(raw, size)[0]
    assert sorted(best.boxes[:, 0].tolist()) == [0, 33], "pixel 32 is too far from both"
    lowest = build().decode(raw, size)[0].scores[-1].item()
    assert lowest == pytest.approx(torch.tensor([1.0, 0.0, 0.0]).softmax(0)[0].item(), abs=1e-5)


def test_nothing_but_background() -> None:
    raw = drawn(torch.full((8, 9), -1), [], [])
    found = build().decode(raw, [ImageSize.same((32, 36))])[0]
    assert len(found) == 0
    assert found.size == (32, 36)


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 96)])
def test_maps_have_stride_4_at_any_size(size: tuple[int, int]) -> None:
    with torch.no_grad():
        raw = build().eval()(torch.zeros(1, 3, *size))
    cells = tuple(-(-side // 4) for side in size)
    assert raw.logits.shape == (1, K + 1, *cells)
    assert raw.embeddings.shape == (1, 2, *cells)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 255}, "at most 254"),
        ({"decoder_widths": (8, 8)}, "give three"),
        ({"bandwidth": 0.0}, "radius above 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EmbeddingConfig(**settings)


@pytest.mark.slow
def test_trained_on_one_picture_it_finds_the_objects() -> None:
    pixels = torch.full((64, 64), -1)
    pixels[4:36, 4:28], pixels[4:36, 28:60], pixels[44:60, 8:56] = 0, 1, 2
    truth = target(torch.stack([pixels == n for n in range(3)]), [0, 0, 1])
    colours = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [-1, -1, -1]])
    image = colours[pixels].permute(2, 0, 1)[None]
    net = build().train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(100):
        optimiser.zero_grad()
        torch.stack(list(net.loss(image, [truth]).values())).sum().backward()
        optimiser.step()
    found = net.decode(EmbeddingRaw(*(x.detach() for x in net(image))), [ImageSize.same((64, 64))])
    assert sorted(found[0].labels.tolist()) == [0, 0, 1]
    masks = torch.from_numpy(rle.decode(found[0].masks)).bool()
    truths = torch.stack([pixels == n for n in range(3)])
    both = (masks[:, None] & truths).sum((2, 3))
    iou = both / (masks[:, None] | truths).sum((2, 3))
    assert (iou.amax(dim=0) > 0.95).all(), iou


def test_places_are_added_to_the_first_two_numbers_alone() -> None:
    torch.manual_seed(0)
    settings = {"backbone": "test_resnet", "decoder_widths": (8, 8, 8), "embedding_dims": 3}
    plain = Embedding(EmbeddingConfig(**settings)).eval()
    placed = Embedding(EmbeddingConfig(**settings, position_scale=0.5)).eval()
    placed.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 40, 72)
    with torch.no_grad():
        added = placed(images).embeddings - plain(images).embeddings  # [2, 3, 10, 18]
    assert added.shape == (2, 3, 10, 18)
    for y in range(10):
        for x in range(18):  # a cell is 4 pixels of 0.5 each; the middle of the image is 0
            wanted = torch.tensor([(x - 8.5) * 2, (y - 4.5) * 2, 0.0])
            torch.testing.assert_close(added[0, :, y, x], wanted, rtol=0, atol=1e-4)
    assert torch.equal(added[0, 2], torch.zeros(10, 18))


def test_places_keep_their_precision_in_bfloat16() -> None:
    settings = {"backbone": "test_resnet", "decoder_widths": (8, 8, 8), "position_scale": 0.5}
    net = Embedding(EmbeddingConfig(**settings)).eval()
    torch.nn.init.zeros_(net.embed.weight)
    torch.nn.init.zeros_(net.embed.bias)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        embeddings = net(torch.zeros(1, 3, 8, 2048)).embeddings
    steps = embeddings[0, 0, 0].diff()
    torch.testing.assert_close(steps, torch.full((511,), 2.0), rtol=0, atol=0)


def test_equal_objects_are_told_apart_by_their_places() -> None:
    """Two equal squares on black: what a convolution says of both is the same, unless placed."""
    torch.manual_seed(0)
    masks = torch.zeros(2, 64, 160, dtype=torch.bool)
    masks[0, 24:40, 32:48] = masks[1, 24:40, 112:128] = True
    images = torch.zeros(1, 3, 64, 160)
    images[:, :, masks.any(dim=0)] = 1.0
    settings = {"num_classes": 1, "backbone": "test_resnet", "decoder_widths": (8, 8, 8)}
    net = Embedding(EmbeddingConfig(**settings, position_scale=0.1)).eval()
    with torch.no_grad():
        embeddings = net(images).embeddings[0]  # [8, 16, 40]
    left, right = embeddings[:, 8, 10], embeddings[:, 8, 30]
    moved = right - left - torch.tensor([8.0] + [0.0] * 7)  # 80 pixels of 0.1
    assert moved.abs().max() < 0.5, "the network alone must see nearly the same in both places"

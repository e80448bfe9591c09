"""SOLO: every cell of a grid predicts the mask of the object that is centred in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.losses.focal import sigmoid_focal
from pixelwise.losses.overlap import squared_dice_loss
from pixelwise.nn.backbones import build_backbone
from pixelwise.nn.fpn import FPN
from pixelwise.nn.grid_masks import DecoupledMasks, DynamicMasks, GridCategories, GridMasks, Maps
from pixelwise.nn.norm import NORMS
from pixelwise.nn.regions import best_first
from pixelwise.ops.division import divide
from pixelwise.ops.mask_maps import masks_from_cells, masks_on_cells, mass_centres
from pixelwise.ops.rle import tight_boxes
from pixelwise.ops.suppress import mask_nms, matrix_nms, point_nms
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, InstancePrediction, InstanceTarget, RunLengths, Size

FORMS = ("full", "decoupled", "light", "dynamic")
SUPPRESSIONS = ("gaussian", "linear", "mask")
LEVEL_STRIDES = (8, 8, 16, 32, 32)  # of the evened pyramid; section 4 of SOLO, released code
MAP_STRIDE = 4  # input pixels per cell of the masks at inference
CENTRE_FRAC = 0.2  # share of an object's sides that is its centre region; section 3.3
MASK_WEIGHT = 3.0  # lambda of equation 1
MASK_NMS_IOU = 0.5  # section 3.3
STATS_CHUNK = 1 << 21  # mask pixels looked at together: 8 MB
DECODE_CHUNK = 16  # masks compared, or brought to the picture, together


@dataclass(frozen=True, kw_only=True)
class SOLOConfig:
    """Settings of SOLO; the defaults are those of the paper's ResNet-50 on COCO.

    Args:
        num_classes:   K, without background.
        in_channels:   of the images.
        backbone:      one of our ResNets, or any of timm that has maps of strides 4 to 32.
        backbone_norm: "frozen" for pretrained weights, as published; "batch", "sync", "group".
        channels:      of the feature pyramid.
        form:          "full": S * S mask channels; "decoupled": S columns and S rows, two towers;
                       "light": the same from one tower; "dynamic": SOLOv2's kernels per cell.
        head_width:    channels of the towers. Section 3.1: 256; SOLOv2: 512.
        head_convs:    3x3 convolutions per tower. Section 3.1: 7; "light" and SOLOv2: 4.
        grids:         S of each level, finest first. Section 4.
        scale_ranges:  per level the least and the largest sqrt(w * h) of its objects, pixels.
        with_coords:   append coordinate planes before the mask towers. Section 3.1 (CoordConv).
        kernel_width:  E, of SOLOv2's shared map and its kernels; other forms do not read it.
        cells_per_level: cells of each level whose masks are drawn, best category score first.
        score_thresh:  a category scores more than this, 0..1. Section 3.3.
        mask_thresh:   a mask's pixels are above this, 0..1. Section 3.3.
        candidates:    best masks that enter the suppression. Section 3.3.
        suppression:   "gaussian" or "linear" Matrix NMS (released code), or greedy "mask" NMS
                       (section 3.3).
        nms_sigma:     of the gaussian.
        final_thresh:  least score after Matrix NMS, 0..1. Released code.
        detections_per_image: most detections per image, all classes together.

    Source:  Wang et al., "SOLO: Segmenting Objects by Locations" (arXiv:1912.04488); "SOLOv2"
        (arXiv:2003.10152); what they leave open as in mmdet 3.3.
    """

    num_classes: int = 80
    in_channels: int = 3
    backbone: str = "resnet50"
    backbone_norm: str = "frozen"
    channels: int = 256
    form: Literal["full", "decoupled", "light", "dynamic"] = "full"
    head_width: int = 256
    head_convs: int = 7
    grids: tuple[int, ...] = (40, 36, 24, 16, 12)
    scale_ranges: tuple[tuple[float, float], ...] = (
        (1, 96),
        (48, 192),
        (96, 384),
        (192, 768),
        (384, 2048),
    )
    with_coords: bool = True
    kernel_width: int = 256
    cells_per_level: int = 100
    score_thresh: float = 0.1
    mask_thresh: float = 0.5
    candidates: int = 500
    suppression: Literal["gaussian", "linear", "mask"] = "gaussian"
    nms_sigma: float = 2.0
    final_thresh: float = 0.05
    detections_per_image: int = 100

    def __post_init__(self) -> None:
        check_config(
            self, {"form": FORMS, "suppression": SUPPRESSIONS, "backbone_norm": (*NORMS, None)}
        )
        object.__setattr__(self, "scale_ranges", tuple(tuple(r) for r in self.scale_ranges))
        for name in ("grids", "scale_ranges"):
            if len(getattr(self, name)) != len(LEVEL_STRIDES):
                raise UsageError(
                    f"solo has {len(LEVEL_STRIDES)} levels: give {name} as many values, "
                    f"not {len(getattr(self, name))}"
                )


class Raw(NamedTuple):
    """The best cells of each level: min(cells_per_level, S * S) of every level, finest level first.

    scores: [B, N, K] category scores in [0, 1], 0 where a neighbouring cell scores higher. masks:
    [B, N, h, w] in [0, 1], on cells of 4 input pixels; zeros where no category scores more than
    `score_thresh`: they are not drawn.
    """

    scores: Tensor
    masks: Tensor


class Assignment(NamedTuple):
    """What the cells of one image should find.

    owners: L of [S, S] int64, the object that each cell is positive for, or -1. counted: L of
    [S, S] bool, False where a crowd forbids to call a cell background.
    """

    owners: list[Tensor]
    counted: list[Tensor]


class SOLO(nn.Module):
    """Instance segmentation as two classifications: which class a cell has, which pixels its mask.

    No boxes, no anchors, no grouping: an object is told apart from its neighbours by the cell its
    centre lies in, and from larger and smaller ones by the pyramid level.

    Args:
        cfg: the variant.

    Source:  Wang, Kong, Shen, Jiang, Li, ECCV 2020 (arXiv:1912.04488).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {"categories.classify": 1}
    spans_input: ClassVar[bool] = True  # its grid: an object is more of a crop than of a picture

    def __init__(self, cfg: SOLOConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = build_backbone(
            cfg.backbone, in_channels=cfg.in_channels, norm=cfg.backbone_norm
        )
        self.neck = FPN(cast("tuple[int, ...]", self.backbone.channels), cfg.channels)
        self.categories = GridCategories(
            cfg.channels, cfg.num_classes, cfg.grids, width=cfg.head_width, convs=cfg.head_convs
        )
        self.masks = _mask_branch(cfg)

    def forward(self, images: Tensor) -> Raw:
        """Score all cells, and draw the masks of the best ones.

        Args:
            images: [B, C, H, W] normalised.
        """
        pyramid = self.neck(self.backbone(images))
        maps = self.masks(pyramid)
        scores: list[Tensor] = []
        masks: list[Tensor] = []
        for level, logits in enumerate(self.categories(pyramid)):
            probs = point_nms(logits.sigmoid()).flatten(2).transpose(1, 2)  # [B, S * S, K]
            count = min(self.cfg.cells_per_level, probs.shape[1])
            _, cells = best_first(probs.amax(dim=2), count)  # [B, n]
            scores.append(torch.take_along_dim(probs, cells[:, :, None], dim=1))
            heard = scores[-1].amax(dim=2) > self.cfg.score_thresh  # [B, n]
            masks.append(self._draw(level, maps, cells, heard))
        return Raw(torch.cat(scores, dim=1), _padded(masks, [s.shape[1] for s in scores]))

    def _draw(self, level: int, maps: Sequence[Maps], cells: Tensor, heard: Tensor) -> Tensor:
        """Masks [B, m, h, w] of the first m of cells [B, n] of a level; the others have none.

        Args:
            level: 0 is the finest.
            maps:  of all levels.
            cells: [B, n] int64, best first.
            heard: [B, n] bool, which of them are drawn.
        """
        # A graph has fixed sizes; otherwise what comes after the last that is heard costs nothing.
        most = cells.shape[1]
        if not torch.compiler.is_compiling():
            most = max(1, int(heard.sum(dim=1).amax()))
        drawn = self.masks.draw(level, maps[level], cells[:, :most], map_size(maps))
        return drawn.masked_fill(~heard[:, :most, None, None], 0)

    def loss(self, images: Tensor, targets: Sequence[InstanceTarget]) -> dict[str, Tensor]:
        """Focal loss of the categories, and three times the Dice loss of the positive cells' masks.

        Args:
            images:  [B, C, H, W] normalised.
            targets: one per image, in pixels of `images`.

        Returns:
            "category" and "mask".
        """
        pyramid = self.neck(self.backbone(images))
        maps = self.masks(pyramid)

        def draw(level: int, image: int, cells: Tensor) -> Tensor:
            own = tuple(m[image : image + 1] for m in maps[level])
            return self.masks.draw(level, own, cells[None])[0]

        height, width = map_size(maps)
        extent = (MAP_STRIDE * height, MAP_STRIDE * width)
        found = [assign(t, self.cfg.grids, self.cfg.scale_ranges, extent=extent) for t in targets]
        return {
            "category": category_loss(self.categories(pyramid), found, targets),
            "mask": mask_loss(draw, found, targets, strides=self.masks.strides),
        }

    @torch.no_grad()
    def decode(self, raw: Raw, sizes: Sequence[ImageSize]) -> list[InstancePrediction]:
        """Rank the masks, suppress duplicates, and bring the rest to the original pictures.

        A category's score is multiplied with the mean of its mask's pixels ("maskness"). A
        detection's box is the extent of its mask; without a pixel it is no detection.

        Args:
            raw:   of `forward`.
            sizes: one per image.
        """
        return [
            self._decode_one(scores.float(), masks, size)
            for scores, masks, size in zip(*raw, sizes, strict=True)
        ]

    def _decode_one(self, scores: Tensor, masks: Tensor, size: ImageSize) -> InstancePrediction:
        cfg = self.cfg
        heard = (scores > cfg.score_thresh).any(dim=1).nonzero()[:, 0]  # [M]
        scores, least = scores[heard], self._least_areas(scores)[heard]
        areas, maskness = mask_statistics(masks, heard, thresh=cfg.mask_thresh)  # [M] each
        nth, label = ((scores > cfg.score_thresh) & (areas > least)[:, None]).nonzero(as_tuple=True)
        values = scores[nth, label] * maskness[nth]  # [C] candidates
        best = values.argsort(descending=True, stable=True)[: cfg.candidates]
        cell, label, values = heard[nth[best]], label[best], values[best]
        solid = [(masks[some] > cfg.mask_thresh).flatten(1) for some in cell.split(DECODE_CHUNK)]
        values = self._suppress(torch.cat(solid), label, values)
        kept = values.argsort(descending=True, stable=True)
        kept = kept[: min(int((values >= 0).sum()), cfg.detections_per_image)]
        runs = RunLengths.concat(
            masks_from_cells(masks[some], size, stride=MAP_STRIDE, thresh=cfg.mask_thresh)
            for some in cell[kept].split(DECODE_CHUNK)
        )
        boxes = torch.from_numpy(tight_boxes(runs))  # [D, 4]
        found = InstancePrediction(
            boxes=boxes, labels=label[kept].cpu(), scores=values[kept].cpu(), masks=runs
        )
        return found.select(boxes[:, 2] > 0)

    def _suppress(self, solid: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
        """Scores [M] after the suppression of masks [M, h * w], -1 for what it removes."""
        cfg = self.cfg
        if cfg.suppression == "mask":
            stays = mask_nms(solid, labels, scores, iou_thresh=MASK_NMS_IOU)
        else:
            scores = matrix_nms(solid, labels, scores, kernel=cfg.suppression, sigma=cfg.nms_sigma)
            stays = scores >= cfg.final_thresh
        return scores.masked_fill(~stays, -1)

    def _least_areas(self, like: Tensor) -> Tensor:
        """[N] map cells that each mask must exceed: its level's stride. Released code."""
        counts = [min(self.cfg.cells_per_level, side**2) for side in self.cfg.grids]
        strides = like.new_tensor(LEVEL_STRIDES)
        return strides.repeat_interleave(torch.tensor(counts, device=like.device))


def _mask_branch(cfg: SOLOConfig) -> GridMasks | DecoupledMasks | DynamicMasks:
    widths = {"width": cfg.head_width, "convs": cfg.head_convs}
    if cfg.form == "full":
        return GridMasks(cfg.channels, cfg.grids, **widths, with_coords=cfg.with_coords)
    if cfg.form == "dynamic":
        return DynamicMasks(
            cfg.channels,
            cfg.grids,
            **widths,
            kernel_width=cfg.kernel_width,
            with_coords=cfg.with_coords,
        )
    return DecoupledMasks(
        cfg.channels,
        cfg.grids,
        **widths,
        with_coords=cfg.with_coords,
        shared=cfg.form == "light",
    )


def _padded(parts: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Concatenate [B, m, h, w] along m, each filled up with zeros to its count."""
    if torch.compiler.is_compiling():
        return torch.cat(list(parts), dim=1)  # each has its count already
    whole = parts[0].new_zeros(len(parts[0]), sum(counts), *parts[0].shape[2:])
    for part, room in zip(parts, whole.split(counts, dim=1), strict=True):
        room[:, : part.shape[1]] = part
    return whole


def map_size(maps: Sequence[Maps]) -> Size:
    """(height, width) of the finest mask maps, at stride 4."""
    return maps[0][-1].shape[-2], maps[0][-1].shape[-1]


def mask_statistics(masks: Tensor, index: Tensor, *, thresh: float) -> tuple[Tensor, Tensor]:
    """How many pixels of soft masks are above a threshold, and their mean value.

    Args:
        masks:  [N, h, w] in [0, 1].
        index:  [M] int64, the masks asked for; they are never copied all at once.
        thresh: in [0, 1].

    Returns:
        areas [M] and maskness [M], float32; both 0 where no pixel is.
    """
    areas: list[Tensor] = []
    sums: list[Tensor] = []
    step = max(1, STATS_CHUNK // max(1, masks.shape[1] * masks.shape[2]))
    for some in index.split(step):
        values = masks[some].flatten(1).float()
        areas.append((values > thresh).sum(dim=1, dtype=torch.int32).float())
        sums.append(F.threshold(values, thresh, 0.0).sum(dim=1))
    area = torch.cat(areas)
    return area, torch.cat(sums) / area.clamp(min=1)


@torch.no_grad()
def assign(
    target: InstanceTarget,
    grids: Sequence[int],
    scale_ranges: Sequence[tuple[float, float]],
    *,
    extent: Size,
) -> Assignment:
    """Give each object to the cells at its centre, on every level that its size suits.

    The centre is that of the mask's mass. Positive are the cells that a box around it with a fifth
    of the object's sides touches, but no further than the neighbours of the centre's cell: at most
    9. Of several objects the last one gets the cell.

    Args:
        target:       of one image.
        grids:        S per level.
        scale_ranges: per level, least and largest sqrt(w * h), pixels, both included.
        extent:       (height, width) that the grids cover, input pixels.

    Source:  SOLO (arXiv:1912.04488), section 3.3.
    Differs: cells within a crowd's box are no background.
    """
    areas, centres = mass_centres(target.masks)
    sides = target.boxes[:, 2:] - target.boxes[:, :2]  # [N, 2]
    scales = sides.prod(dim=1).sqrt()
    usable = (areas > 0) & ~target.crowd
    span = centres.new_tensor([extent[1], extent[0]])
    half = 0.5 * sides * CENTRE_FRAC
    owners: list[Tensor] = []
    counted: list[Tensor] = []
    for side, (least, largest) in zip(grids, scale_ranges, strict=True):
        low, at, high = (
            divide(p / span, 1 / side).long() for p in (centres - half, centres, centres + half)
        )  # [N, 2] each
        low = torch.maximum(low.clamp(min=0), at - 1)
        high = torch.minimum(high.clamp(max=side - 1), at + 1)
        index = torch.arange(side, device=at.device)
        inside = (index >= low[:, :, None]) & (index <= high[:, :, None])  # [N, 2, S]
        suits = usable & (scales >= least) & (scales <= largest)
        takes = inside[:, 1, :, None] & inside[:, 0, None] & suits[:, None, None]  # [N, S, S]
        numbers = torch.arange(1, len(target) + 1, device=at.device)[:, None, None]
        nobody = numbers.new_zeros(1, side, side)
        owners.append(torch.cat([nobody, takes * numbers]).amax(dim=0) - 1)
        counted.append(~_in_boxes(target.boxes[target.crowd], side, span) | (owners[-1] >= 0))
    return Assignment(owners, counted)


def _in_boxes(boxes: Tensor, side: int, span: Tensor) -> Tensor:
    """[S, S] bool, cells whose centre lies in one of the boxes; span is [width, height]."""
    at = divide(torch.arange(side, device=span.device) + 0.5, side) * span[:, None]  # [2, S]
    inside = (at >= boxes[:, :2, None]) & (at < boxes[:, 2:, None])  # [N, 2, S]
    return (inside[:, 1, :, None] & inside[:, 0, None]).any(dim=0)


def category_loss(
    logits: Sequence[Tensor], found: Sequence[Assignment], targets: Sequence[InstanceTarget]
) -> Tensor:
    """Sum of the focal losses of all cells and classes, over the number of positive cells plus one.

    Args:
        logits:  L of [B, K, S, S].
        found:   per image.
        targets: per image.
    """
    total, positives = logits[0].new_zeros((), dtype=torch.float32), 0
    for level, values in enumerate(logits):
        for image, (cells, target) in enumerate(zip(found, targets, strict=True)):
            owners = cells.owners[level]
            rows, columns = (owners >= 0).nonzero(as_tuple=True)
            wanted = torch.zeros_like(values[image])  # [K, S, S]
            wanted[target.labels[owners[rows, columns]], rows, columns] = 1
            losses = sigmoid_focal(values[image], wanted)
            total = total + (losses * cells.counted[level]).sum()
            positives += len(rows)
    return total / (positives + 1)


def mask_loss(
    draw: Callable[[int, int, Tensor], Tensor],
    found: Sequence[Assignment],
    targets: Sequence[InstanceTarget],
    *,
    strides: Sequence[int],
) -> Tensor:
    """Weighted mean of the Dice losses of all positive cells.

    Args:
        draw:    from level, image and cells [n] to their masks, [n, h, w] in [0, 1].
        found:   per image.
        targets: per image.
        strides: input pixels per cell of the masks, per level.
    """
    losses: list[Tensor] = []
    for level, stride in enumerate(strides):
        for image, (cells, target) in enumerate(zip(found, targets, strict=True)):
            owners = cells.owners[level].flatten()
            positive = (owners >= 0).nonzero()[:, 0]  # [n]
            # Also without positives, so that every parameter has a gradient.
            probs = draw(level, image, positive).float()
            objects, which = owners[positive].unique(return_inverse=True)
            size = (probs.shape[1], probs.shape[2])
            wanted = masks_on_cells(target.masks, objects, size, stride)
            losses.append(squared_dice_loss(probs.flatten(1), wanted[which].flatten(1)))
    flat = torch.cat(losses)
    return MASK_WEIGHT * flat.sum() / max(1, len(flat))

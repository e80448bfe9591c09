"""Instances bottom-up: an embedding per pixel, trained by a discriminative loss, then clustered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.losses.embedding import discriminative_loss
from pixelwise.losses.semantic import PixelLoss, check_pixel_loss
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.encoder_decoder import ExpandingPath
from pixelwise.nn.norm import NORMS, Norm
from pixelwise.nn.pixel_criterion import PixelCriterion
from pixelwise.ops.cell_grid import labels_at_cells
from pixelwise.ops.label_maps import encode_label_map, paint_crops
from pixelwise.ops.mean_shift import mean_shift, nearest_centres
from pixelwise.ops.resize import strips_of_original
from pixelwise.ops.rle import areas, tight_boxes
from pixelwise.settings import check_config
from pixelwise.types import IGNORE, ImageSize, InstancePrediction, InstanceTarget, Size

_LEVELS = (2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Settings of the embedding system; margins and weights are the paper's.

    Args:
        num_classes:    K, without background; 8 things in Cityscapes. At most 254.
        in_channels:    of the images.
        backbone:       any name of `build_backbone` with maps at strides 4, 8, 16 and 32.
        backbone_style: set of knobs of our ResNets, see `build_backbone`.
        backbone_norm:  "batch", "frozen" where few pictures make a step, "sync" or "group".
        decoder_norm:   of the decoder's convolutions, one of the same; "frozen" is none.
        decoder_widths: channels of the decoder at strides 16, 8 and 4. Ours.
        embedding_dims: D, numbers per pixel; 8 is common.
        position_scale: what a pixel to the right, or down, adds to the first, or second, number
                        of the embedding. With 0, as published, a convolution gives equal objects
                        equal embeddings; with about 3 over the distance of objects that look alike
                        it only has to point at their centres (arXiv:1807.10712).
        delta_v:        radius of the pull towards the mean. Section 4: 0.5.
        delta_d:        half the distance that means keep. Section 4: 1.5.
        variance_weight: alpha, of the pull. Section 4: 1.
        distance_weight: beta, of the push. Section 4: 1.
        regularisation_weight: gamma, of the means' lengths. Section 4: 0.001.
        loss:           of the classes of pixels, see `semantic_loss`.
        bandwidth:      radius of the mean shift's kernel. Where the loss is 0, pixels of an object
                        lie within 2 delta_v of each other and others at least 2 delta_d - 2 delta_v
                        away: between the two, clusters are exactly the objects. At delta_v, as
                        often used, an object with two dense spots falls apart.
        min_cells:      smaller clusters are dropped, cells of stride 4. Ours.
        max_seeds:      of the mean shift, per class; it bounds the time of an untrained network.
        detections_per_image: most objects per image, all classes together.

    Source: De Brabandere et al. (arXiv:1708.02551).
    """

    num_classes: int = 8
    in_channels: int = 3
    backbone: str = "resnet50"
    backbone_style: str | None = None
    backbone_norm: Norm = "batch"
    decoder_norm: Norm = "batch"
    decoder_widths: tuple[int, ...] = (256, 128, 64)
    embedding_dims: int = 8
    position_scale: float = 0.0
    delta_v: float = 0.5
    delta_d: float = 1.5
    variance_weight: float = 1.0
    distance_weight: float = 1.0
    regularisation_weight: float = 0.001
    loss: PixelLoss = "cross_entropy"
    bandwidth: float = 1.0
    min_cells: int = 10
    max_seeds: int = 500
    detections_per_image: int = 100

    def __post_init__(self) -> None:
        check_config(self, {"backbone_norm": NORMS, "decoder_norm": NORMS})
        check_pixel_loss(self.loss)
        if self.num_classes >= IGNORE:
            raise UsageError(
                f"num_classes is at most {IGNORE - 1}, not {self.num_classes}: "
                f"background is one more, and {IGNORE} marks pixels that do not count"
            )
        if len(self.decoder_widths) != len(_LEVELS) - 1:
            raise UsageError(
                f"decoder_widths has {len(self.decoder_widths)} values; "
                "give three, for strides 16, 8 and 4"
            )
        if self.position_scale and self.embedding_dims < 2:
            raise UsageError("position_scale needs embedding_dims of 2 at least, for x and y")
        if self.bandwidth <= 0:
            raise UsageError(f"bandwidth is a radius above 0, not {self.bandwidth}")


class EmbeddingRaw(NamedTuple):
    """What the network computes.

    Args:
        logits:     [B, K + 1, ceil(H / 4), ceil(W / 4)], background last.
        embeddings: [B, D, ceil(H / 4), ceil(W / 4)].
    """

    logits: Tensor
    embeddings: Tensor


class Clustered(NamedTuple):
    """Objects of one image before they have masks, best first.

    centres: [N, D]. labels: [N] int64. scores: [N] in [0, 1].
    """

    centres: Tensor
    labels: Tensor
    scores: Tensor


class Embedding(nn.Module):
    """Bottom-up instances (a `System`): a semantic network with a second output to cluster.

    Pixels of one object are trained to lie close together in the embedding space and objects far
    apart; no boxes, no proposals, no fixed number of objects. Any backbone and a U-Net's expanding
    path make the map that both outputs read.

    Args:
        cfg: the settings.

    Source: De Brabandere, Neven, Van Gool, "Semantic Instance Segmentation with a Discriminative
        Loss Function", CVPR 2017 workshops (arXiv:1708.02551).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {"classify": 1}

    def __init__(self, cfg: EmbeddingConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone: Backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            levels=_LEVELS,
            norm=cfg.backbone_norm,
            style=cfg.backbone_style,
        )
        *skips, deepest = self.backbone.channels
        self.decoder = ExpandingPath(
            deepest, skips[::-1], cfg.decoder_widths, upsample="nearest", norm=cfg.decoder_norm
        )
        self.classify = nn.Conv2d(cfg.decoder_widths[-1], cfg.num_classes + 1, 1)
        self.embed = nn.Conv2d(cfg.decoder_widths[-1], cfg.embedding_dims, 1)
        self.criterion = PixelCriterion(cfg.loss)

    def forward(self, images: Tensor) -> EmbeddingRaw:
        """[B, C, H, W] normalised images of any size → class logits and embeddings at stride 4."""
        *skips, deepest = self.backbone(images)
        x = self.decoder(deepest, skips[::-1])[-1]
        embeddings = self.embed(x)
        if self.cfg.position_scale:
            embeddings = _add_position(embeddings, self.cfg.position_scale)
        return EmbeddingRaw(self.classify(x), embeddings)

    def loss(self, images: Tensor, targets: Sequence[InstanceTarget]) -> dict[str, Tensor]:
        """What is minimised: the loss of the classes and the three terms of the embedding.

        Args:
            images:  [B, C, H, W].
            targets: one per image, in pixels of `images`.

        Returns:
            "class", at every pixel; "variance", "distance" and "regularisation", at the cells of
            stride 4 and averaged over the images. An object without a cell of its own takes no
            part in these.
        """
        raw = self(images)
        size = (images.shape[2], images.shape[3])
        painted = [paint_targets(target, size, self.cfg.num_classes) for target in targets]
        classes, instances = (torch.stack(maps) for maps in zip(*painted, strict=True))  # [B, H, W]
        grid = (raw.embeddings.shape[2], raw.embeddings.shape[3])
        cells = labels_at_cells(instances, grid)  # [B, h, w]
        terms = [
            discriminative_loss(
                embedding.flatten(1),
                owner.flatten(),
                delta_v=self.cfg.delta_v,
                delta_d=self.cfg.delta_d,
            )
            for embedding, owner in zip(raw.embeddings, cells, strict=True)
        ]
        variance, distance, regularisation = (
            torch.stack(values).mean() for values in zip(*terms, strict=True)
        )
        return {
            "class": self.criterion(raw.logits, classes),
            "variance": self.cfg.variance_weight * variance,
            "distance": self.cfg.distance_weight * distance,
            "regularisation": self.cfg.regularisation_weight * regularisation,
        }

    @torch.no_grad()
    def decode(self, raw: EmbeddingRaw, sizes: Sequence[ImageSize]) -> list[InstancePrediction]:
        """Cluster the cells of each class, then give every pixel to the nearest cluster.

        Embeddings are brought to the original picture as logits are, in strips, so that outlines
        are smooth; a pixel farther than delta_d from every cluster of its class belongs to none.

        Args:
            raw:   of `forward`.
            sizes: one per image.
        """
        predictions: list[InstancePrediction] = []
        for logits, embeddings, size in zip(raw.logits, raw.embeddings, sizes, strict=True):
            found = self.cluster(logits.float(), embeddings.float(), size)
            owners = self._owners(torch.cat([logits, embeddings]), found, size)
            masks = encode_label_map(owners, len(found.labels))
            prediction = InstancePrediction(
                boxes=torch.from_numpy(tight_boxes(masks)),
                labels=found.labels.cpu(),
                scores=found.scores.cpu(),
                masks=masks,
            )
            predictions.append(prediction.select(torch.from_numpy(areas(masks) > 0)))
        return predictions

    def cluster(self, logits: Tensor, embeddings: Tensor, size: ImageSize) -> Clustered:
        """Objects of one image: mean shift over the cells of each class, most certain ones first.

        Args:
            logits:     [K + 1, h, w].
            embeddings: [D, h, w].
            size:       the picture's sizes; cells in the padding are left out.

        Returns:
            the `detections_per_image` best; an object's score is the mean probability of its class
            over its cells.
        """
        rows, columns = (
            _cells_inside(cells, size.content[axis], size.input[axis])
            for axis, cells in enumerate(logits.shape[1:])
        )
        best, classes = logits[:, :rows, :columns].softmax(dim=0).flatten(1).max(dim=0)  # [P]
        points = embeddings[:, :rows, :columns].flatten(1).T  # [P, D]
        parts = [Clustered(points[:0], classes[:0], best[:0])]
        for label in classes.unique().tolist():
            if label == self.cfg.num_classes:
                continue
            cells = (classes == label).nonzero()[:, 0]
            cells = cells[best[cells].argsort(descending=True, stable=True)]
            parts.append(self._cluster_class(points[cells], best[cells], label))
        joined = Clustered(*(torch.cat(values) for values in zip(*parts, strict=True)))
        order = joined.scores.argsort(descending=True, stable=True)
        order = order[: self.cfg.detections_per_image]
        return Clustered(*(values[order] for values in joined))

    def _cluster_class(self, points: Tensor, probs: Tensor, label: int) -> Clustered:
        """Clusters among the cells of one class: points [P, D], probabilities [P]."""
        cfg = self.cfg
        owner, centres = mean_shift(
            points, cfg.bandwidth, min_points=cfg.min_cells, max_seeds=cfg.max_seeds
        )
        some = owner >= 0
        sums = probs.new_zeros(len(centres)).index_add(0, owner[some], probs[some])
        scores = sums / owner[some].bincount(minlength=len(centres))
        return Clustered(centres, torch.full_like(scores, label, dtype=torch.int64), scores)

    def _owners(self, maps: Tensor, found: Clustered, size: ImageSize) -> Tensor:
        """[H, W] int64 on the CPU: the object that each pixel of the original belongs to, or -1."""
        owners = torch.full(size.original, -1, dtype=torch.int64)
        objects = [(c, (found.labels == c).nonzero()[:, 0]) for c in found.labels.unique().tolist()]
        split = self.cfg.num_classes + 1
        strips = strips_of_original(
            maps, size, align_corners=False, extra_channels=len(found.labels)
        )
        for rows, part in strips:
            classes = part[:split].argmax(dim=0)  # [rows, W]
            owner = torch.full_like(classes, -1)
            for label, members in objects:
                mine = classes == label
                centres = found.centres[members]
                nearest = nearest_centres(part[split:, mine].T, centres, self.cfg.delta_d)
                owner[mine] = torch.where(nearest < 0, -1, members[nearest])
            owners[rows] = owner.cpu()
        return owners


def _add_position(embeddings: Tensor, scale: float) -> Tensor:
    """Add the place of each cell, from the middle of the image, to the first two of D numbers.

    Args:
        embeddings: [B, D, h, w] at stride 4.
        scale:      units per pixel.

    Returns:
        [B, D, h, w] float32: half precision would round the places to whole units.

    Source:  Novotny et al., "Semi-convolutional Operators for Instance Segmentation"
        (arXiv:1807.10712), section 3.
    """
    height, width = embeddings.shape[2], embeddings.shape[3]
    step = scale * 2 ** _LEVELS[0]
    x = (torch.arange(width, device=embeddings.device) - (width - 1) / 2) * step  # [w]
    y = (torch.arange(height, device=embeddings.device) - (height - 1) / 2) * step  # [h]
    places = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])  # [2, h, w]
    first = embeddings[:, :2].float() + places
    return torch.cat([first, embeddings[:, 2:].float()], dim=1)


def paint_targets(target: InstanceTarget, size: Size, num_classes: int) -> tuple[Tensor, Tensor]:
    """The class and the object of every pixel.

    Where objects overlap, the smaller one is seen. Crowd regions lie below all objects.

    Args:
        target:      N objects.
        size:        (H, W) of the network input.
        num_classes: K, the number of the background.

    Returns:
        classes:   [H, W] int64 in 0..K; 255 in crowd regions and in the padding.
        instances: [H, W] int64 in 0..N-1; -1 where there is no object that counts.
    """
    extents = target.masks.areas_of_windows
    below = extents + target.crowd * (size[0] * size[1] + 1)
    painted = paint_crops(target.masks, below.argsort(descending=True, stable=True))
    # The number of "no mask", -1, reads the last entry: background.
    classes = target.labels.masked_fill(target.crowd, IGNORE)
    classes = torch.cat([classes, classes.new_tensor([num_classes])])[painted]
    numbers = torch.arange(len(target), device=painted.device).masked_fill(target.crowd, -1)
    instances = torch.cat([numbers, numbers.new_tensor([-1])])[painted]
    padding = (0, size[1] - target.size[1], 0, size[0] - target.size[0])
    return F.pad(classes, padding, value=IGNORE), F.pad(instances, padding, value=-1)


def _cells_inside(cells: int, content: int, length: int) -> int:
    """How many of the first cells of an axis have their centre in the content, at least one."""
    return max(1, math.ceil(cells * content / length - 0.5))

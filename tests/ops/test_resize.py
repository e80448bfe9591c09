import pytest
import torch
from torch.nn import functional as F

from pixelwise.ops import resize as module
from pixelwise.ops.resize import logits_to_prediction, resize
from pixelwise.types import ImageSize

SIZES = [
    ImageSize.same((65, 97)),
    ImageSize(original=(65, 97), content=(65, 97), input=(96, 128)),
    ImageSize(original=(131, 203), content=(60, 93), input=(64, 96)),
    ImageSize(original=(33, 51), content=(60, 93), input=(64, 96)),
    ImageSize(original=(7, 200), content=(9, 96), input=(64, 96)),
]


def reference(logits: torch.Tensor, size: ImageSize, align_corners: bool) -> torch.Tensor:
    dense = F.interpolate(logits[None], size.input, mode="bilinear", align_corners=align_corners)
    dense = dense[..., : size.content[0], : size.content[1]]
    return F.interpolate(dense, size.original, mode="bilinear")[0]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_prediction_is_the_dense_one(size: ImageSize, align_corners: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, -(-size.input[0] // 4), -(-size.input[1] // 4))
    out = logits_to_prediction(logits, size, align_corners=align_corners, with_probs=True)
    dense = reference(logits, size, align_corners)
    assert out.labels.dtype == torch.uint8
    torch.testing.assert_close(out.probs, dense.softmax(0), rtol=1e-5, atol=1e-6)
    top = dense.topk(2, 0).values
    clear = top[0] - top[1] > 1e-5  # ties may fall either way
    assert torch.equal(out.labels.long()[clear], dense.argmax(0)[clear])
    assert clear.float().mean() > 0.999


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 3, 7])
def test_strips_give_exactly_the_whole(
    size: ImageSize, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    logits = torch.randn(3, -(-size.input[0] // 4), -(-size.input[1] // 4))
    whole = logits_to_prediction(logits, size, align_corners=True, with_probs=True)
    width = max(size.original[1], size.input[1])
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 3 * width * rows)
    strips = logits_to_prediction(logits, size, align_corners=True, with_probs=True)
    assert torch.equal(whole.labels, strips.labels)
    # torch's softmax rounds by the place in a vector register; the logits agree exactly.
    torch.testing.assert_close(whole.probs, strips.probs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("original", [(64, 96), (127, 95), (33, 47), (101, 203)])
def test_a_centred_object_stays_centred(original: tuple[int, int]) -> None:
    """A symmetric map gives a symmetric prediction: nothing is shifted by half a pixel."""
    logits = torch.zeros(2, 16, 24)
    logits[1, 4:12, 6:18] = 2
    logits[0] = 1
    size = ImageSize(original=original, content=(64, 96), input=(64, 96))
    labels = logits_to_prediction(logits, size, align_corners=False).labels
    assert torch.equal(labels, labels.flip(0))
    assert torch.equal(labels, labels.flip(1))
    share = labels.float().mean().item()
    assert share == pytest.approx(0.25, abs=2 / min(original))


def test_padding_is_never_seen() -> None:
    logits = torch.zeros(2, 8, 8)
    logits[1, :, 6:] = 9  # the padding, and nothing else, says class 1
    size = ImageSize(original=(40, 20), content=(32, 16), input=(32, 32))
    labels = logits_to_prediction(logits, size, align_corners=False).labels
    assert not labels.any()


def test_many_classes_need_more_than_a_byte() -> None:
    logits = torch.zeros(300, 2, 2)
    logits[299] = 1
    labels = logits_to_prediction(logits, ImageSize.same((4, 4)), align_corners=True).labels
    assert labels.dtype == torch.int64
    assert (labels == 299).all()


def test_memory_of_a_big_picture_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No intermediate is larger than the budget, however large the picture."""
    largest = 0
    blend = module._blend

    def watched(x: torch.Tensor, *rest) -> torch.Tensor:
        nonlocal largest
        out = blend(x, *rest)
        largest = max(largest, out.numel())
        return out

    monkeypatch.setattr(module, "_blend", watched)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 1 << 16)
    size = ImageSize(original=(1500, 1100), content=(512, 384), input=(512, 384))
    logits_to_prediction(torch.randn(8, 128, 96), size, align_corners=False)
    assert largest <= 2 << 16
    assert 8 * 1500 * 1100 > 100 << 16


@pytest.mark.parametrize("align_corners", [False, True])
def test_resize_is_torchs(align_corners: bool) -> None:
    x = torch.arange(4.0).view(1, 1, 1, 4)
    out = resize(x, (1, 8), align_corners=align_corners).flatten()
    step = 3 / 7 if align_corners else 0.5
    expected = (
        torch.arange(8) * step if align_corners else (torch.arange(8) * step - 0.25).clamp(0, 3)
    )
    torch.testing.assert_close(out, expected)

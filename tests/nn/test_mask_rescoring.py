"""Mask re-scoring: sizes, the maximum, small masks."""

import torch

from pixelwise.nn.mask_rescoring import MaskRescoring


@torch.no_grad()
def test_it_is_a_maximum_over_nine_places_and_never_negative() -> None:
    torch.manual_seed(0)
    net, masks = MaskRescoring(5), torch.rand(3, 138, 138)
    hidden = net.convs(masks[:, None])
    assert hidden.shape == (3, 128, 3, 3)
    places = net.classify(hidden).relu().flatten(2)
    torch.testing.assert_close(net(masks), places.max(dim=2).values)
    net.classify.bias.fill_(-1e3)
    assert (net(masks) == 0).all()
    net.classify.bias.fill_(5.0)
    assert (net(masks) > 1).all(), "no upper bound"


@torch.no_grad()
def test_small_masks_are_filled_up_and_classes_picked() -> None:
    torch.manual_seed(0)
    net, masks = MaskRescoring(4), torch.rand(2, 16, 40)
    padded = torch.zeros(2, 63, 63)
    padded[:, :16, :40] = masks
    torch.testing.assert_close(net(masks), net(padded))
    torch.testing.assert_close(
        net.of_class(masks, torch.tensor([3, 1])), net(masks)[[0, 1], [3, 1]]
    )
    assert net(masks[:0]).shape == (0, 4)

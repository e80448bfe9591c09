import pytest
import torch
from torch import nn

from pixelwise import checkpoint
from pixelwise.class_rows import load_by_class
from pixelwise.errors import UsageError
from pixelwise.ops.resize import resize
from pixelwise.spec import IMAGENET_RGB
from pixelwise.systems import create
from pixelwise.systems.gcn import GCNConfig
from pixelwise.types import IGNORE, SemanticTarget


def tiny(**options) -> nn.Module:
    torch.manual_seed(0)
    return create("gcn", **{"backbone": "test_resnet", "num_classes": 3, "kernel": 5, **options})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_the_released_form() -> None:
    with torch.device("meta"):
        net = create("gcn", kernel=7, upsample="bilinear")
        paper = create("gcn")
    assert count(net) == 59_369_620
    assert len(net.refine) == 9
    wider = sum(2 * 8 * 21 * (c + 21) for c in (256, 512, 1024, 2048))  # k = 15 instead of 7
    assert count(paper) == 59_369_620 + wider + 5 * 21 * 21 * 4 * 4


@pytest.mark.parametrize("upsample", ["deconv", "bilinear"])
@pytest.mark.parametrize("side", [(64, 64), (65, 97), (33, 50), (1, 7)])
def test_logits_have_the_size_of_the_image(upsample: str, side: tuple[int, int]) -> None:
    net = tiny(upsample=upsample).eval()
    assert net(torch.randn(2, 3, *side)).logits.shape == (2, 3, *side)


@pytest.mark.parametrize(
    ("side", "expected"),
    [(64, [2, 4, 8, 16, 4, 8, 16, 32, 64]), (53, [2, 4, 7, 14, 4, 7, 14, 27, 53])],
)
def test_nine_refinements_one_per_level_and_one_per_doubling(side: int, expected: list) -> None:
    net = tiny().eval()
    seen: list[tuple[int, int]] = []
    for i, block in enumerate(net.refine):
        block.register_forward_hook(lambda _, __, out, i=i: seen.append((i, out.shape[-1])))
    net(torch.randn(1, 3, side, side))
    assert seen == list(enumerate(expected))


def test_learnt_doubling_starts_as_interpolation() -> None:
    """At the fresh weights both forms agree where nothing is cut and no border is near."""
    learnt = tiny(with_refinement=False).eval()
    x = torch.randn(1, 3, 6, 8)
    doubled = learnt._double(0, x, (11, 16))
    assert doubled.shape == (1, 3, 11, 16)
    expected = resize(x, (12, 16))
    torch.testing.assert_close(doubled[..., 2:9, 2:14], expected[..., 2:9, 2:14])
    aligned = tiny(upsample="bilinear").eval()
    torch.testing.assert_close(
        aligned._double(0, x, (11, 16)), resize(x, (11, 16), align_corners=True)
    )


def test_every_level_adds_to_the_result() -> None:
    net = tiny().eval()
    images = torch.randn(1, 3, 64, 64)
    before = net(images).logits
    for level, context in enumerate(net.context):
        weight = context.down_across[1].bias
        with torch.no_grad():
            weight += 1
        assert not torch.allclose(net(images).logits, before), level
        with torch.no_grad():
            weight -= 1


def test_without_refinement_and_weights_only_the_sum_of_scores_is_left() -> None:
    """Constant score maps come out as the sum of their levels, away from the fading border."""
    net = tiny(with_refinement=False).eval()
    with torch.no_grad():
        for i, context in enumerate(net.context):
            for name, parameter in context.named_parameters():
                parameter.zero_()
                if name == "down_across.1.bias":
                    parameter.fill_(float(10**i))
    logits = net(torch.randn(1, 3, 512, 512)).logits
    torch.testing.assert_close(logits[..., 256, 256], torch.full((1, 3), 1111.0))


def test_refinement_is_a_choice() -> None:
    with_it, without = tiny(), tiny(with_refinement=False)
    assert count(with_it) - count(without) == 9 * 2 * (3 * 3 * 9 + 3)


def test_loss_is_the_mean_over_valid_pixels() -> None:
    net = tiny().eval()
    labels = torch.randint(0, 3, (33, 32))
    labels[:9] = IGNORE
    images = torch.randn(1, 3, 33, 32)
    expected = nn.functional.cross_entropy(net(images).logits, labels[None], ignore_index=IGNORE)
    torch.testing.assert_close(net.loss(images, [SemanticTarget(labels=labels)])["pixel"], expected)


@pytest.mark.parametrize(
    ("new", "common"),
    [
        (("c", "a", "new", "b"), {0: 2, 1: 0, 3: 1}),
        (("b",), {0: 1}),
        (("x", "a", "b"), {1: 0, 2: 1}),
    ],
)
def test_known_classes_keep_their_rows_and_columns(tmp_path, new, common) -> None:
    """Score maps of other classes: what joins two known ones stays, the rest starts afresh."""
    old = tiny()
    path = tmp_path / "gcn.safetensors"
    checkpoint.save(path, old, name="gcn", classes=("a", "b", "c"), input=IMAGENET_RGB)
    fresh = create("gcn", backbone="test_resnet", num_classes=len(new), kernel=5)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    load_by_class(fresh, path, classes=new)
    after, stored = fresh.state_dict(), old.state_dict()
    for key in ("refine.3.conv1.conv.weight", "context.1.across_down.1.weight", "up.2.weight"):
        for i in range(len(new)):
            for j in range(len(new)):
                known = i in common and j in common
                expected = stored[key][common[i], common[j]] if known else before[key][i, j]
                torch.testing.assert_close(after[key][i, j], expected, rtol=1e-3, atol=1e-4)
    first = "context.0.down_across.0.weight"  # reads the backbone: its columns are no classes
    for i, j in common.items():
        torch.testing.assert_close(after[first][i], stored[first][j], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 4}, "odd"),
        ({"num_classes": 0}, "num_classes"),
        ({"class_weights": (1.0,)}, "one per class"),
        ({"upsample": "nearest"}, "nearest.*deconv"),
        ({"norm": "layer"}, "layer.*batch"),
        ({"loss": "hinge"}, "hinge"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GCNConfig(**options)

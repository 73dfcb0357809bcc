"""Every convolutional classifier family of torchvision and timm, small, with random weights that exercise every rule.

`CASES` lists them, `LEFT_OUT` the timm families that are not here and why, `build(case)` gives the model and a batch of inputs.

Fresh weights are a weak test: batch norm is the identity, biases are zero and residual branches are switched off. So every weight is
drawn anew, batch norm gets the statistics of random data and is then moved away from them, every bias is non-zero, and the classifier
is scaled until the logits have size 1. The same seed gives the same model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import shim  # noqa: F401  before torchvision
import torch
from torch import Tensor, nn

CLASSES = 10
BATCH = 2
BOUNDS = (-2.1, 2.7)  # a box around normalized photos


AMPLIFICATION = 5000.0
"""Above it, rounding alone changes the logits in the third digit."""


@dataclass(frozen=True)
class Case:
    """One model: the smallest sensible member of a family."""

    library: str
    name: str
    family: str
    size: int = 64

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"


def build(case: Case, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """The model in eval mode with drawn weights, and `BATCH` images inside `BOUNDS`.

    Weights and images are drawn in float32 and then converted, so that both dtypes explain the same model. A network
    that is chaotic, so that float32 itself does not determine its logits, is drawn again.
    """
    low, high = BOUNDS
    for draw in range(20):
        torch.manual_seed(20 * seed + draw)
        model = _create(case).eval()
        _draw_weights(model)
        _calibrate(model, torch.randn(8, 3, case.size, case.size))
        images = torch.randn(BATCH, 3, case.size, case.size).clamp(low, high)
        _scale_logits(model, images)
        if _amplification(model, images) < AMPLIFICATION:
            return model.to(dtype), images.to(dtype)
    raise RuntimeError(f"no draw of {case} is stable enough for float32")


def find(names: list[str]) -> list[Case]:
    """The cases called `library:name` or plain `name`."""
    unknown = [name for name in names if not any(name in (case.name, str(case)) for case in CASES)]
    if unknown:
        raise SystemExit(f"no such model: {', '.join(unknown)}; known: {' '.join(map(str, CASES))}")
    return [case for case in CASES if case.name in names or str(case) in names]


def _create(case: Case) -> nn.Module:
    if case.library == "torchvision":
        import torchvision

        plain = {"init_weights": False, "aux_logits": False} if case.name in ("inception_v3", "googlenet") else {}
        return getattr(torchvision.models, case.name)(weights=None, num_classes=CLASSES, **plain)
    import timm

    return timm.create_model(case.name, pretrained=False, num_classes=CLASSES)


@torch.no_grad()
def _draw_weights(model: nn.Module) -> None:
    """He-normal weights, gains around 1 (around 1/2 where a gain starts near 0, as in residual scales), offsets around 0."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and parameter.numel() > max(parameter.shape):
            fan_in = parameter[0].numel()
            parameter.normal_(0, (2 / fan_in) ** 0.5)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.1)
        elif parameter.abs().mean() < 0.1:
            parameter.uniform_(0.3, 0.7)
        else:
            parameter.mul_(torch.empty_like(parameter).uniform_(0.8, 1.2))


@torch.no_grad()
def _calibrate(model: nn.Module, images: Tensor) -> None:
    """Batch norm: the statistics of what reaches it, then mean + N(0, .1) standard deviations and variance · U(.5, 1.5).

    Set layer by layer in one forward pass: what is moved in one layer is seen by the next, so that nothing grows with depth.
    """

    def set_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
        variance, mean = torch.var_mean(inputs[0], dim=axes)
        # A channel that is silent on these images has variance 0 and would blow up on the next ones.
        variance = variance.clamp(min=0.05 * variance.mean().item() + 1e-3)
        norm.running_mean.copy_(mean + 0.1 * variance.sqrt() * torch.randn_like(mean))
        norm.running_var.copy_(variance * torch.empty_like(variance).uniform_(0.5, 1.5))

    norms = [module for module in model.modules() if isinstance(getattr(module, "running_var", None), Tensor)]
    handles = [norm.register_forward_pre_hook(set_statistics) for norm in norms]
    model(images)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def _amplification(model: nn.Module, images: Tensor) -> float:
    """How much larger a relative change of the images by 1e-6 arrives at the logits."""
    moved = images * (1 + 1e-6 * torch.randn_like(images))
    return ((model(moved) - model(images)).abs().max() / 1e-6).item()


@torch.no_grad()
def _scale_logits(model: nn.Module, images: Tensor) -> None:
    """Scales the classifier so that the logits have standard deviation 1."""
    classifiers = [
        module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == CLASSES
    ]
    classifiers = classifiers or [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1:]
    scale = 1 / model(images).std().clamp(min=1e-12)
    for classifier in classifiers:
        classifier.weight.mul_(scale)
        classifier.bias.mul_(scale)
    size = model(images).std().item()
    if not 0.1 < size < 10:
        raise RuntimeError(f"logits of size {size:.2g} after scaling: the draw does not suit this model")


def _cases() -> Iterator[Case]:
    for library, families in (("torchvision", TORCHVISION), ("timm", TIMM)):
        for family, names in families.items():
            for entry in names.split():
                name, _, size = entry.partition("@")
                yield Case(library, name, family, int(size or 64))


# family: its smallest members, with @size where 64 pixels are too few
TORCHVISION = {
    "alexnet": "alexnet",
    "vgg": "vgg11 vgg11_bn",
    "resnet": "resnet18 resnext50_32x4d wide_resnet50_2",
    "densenet": "densenet121",
    "inception": "inception_v3@96 googlenet",
    "mobilenet": "mobilenet_v2 mobilenet_v3_small",
    "efficientnet": "efficientnet_b0 efficientnet_v2_s",
    "mnasnet": "mnasnet0_5",
    "shufflenet": "shufflenet_v2_x0_5",
    "squeezenet": "squeezenet1_1",
    "regnet": "regnet_x_400mf regnet_y_400mf",
    "convnext": "convnext_tiny",
}

# by timm's modules, one line each; several members where a family has several kinds of block
TIMM = {
    "byobnet": "gernet_s repvgg_a0 mobileone_s0 resnext26ts seresnext26ts eca_resnext26ts gcresnext26ts regnetz_b16 resnet51q",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_atto convnext_atto_ols convnext_zepto_rms convnextv2_atto",
    "cspnet": "cspresnet50 cspdarknet53 darknet17 cs3darknet_focus_s cs3sedarknet_l",
    "densenet": "densenet121 densenetblur121d",
    "dla": "dla34 dla46_c dla60_res2net",
    "dpn": "dpn48b",
    "efficientnet": "efficientnet_b0 efficientnet_b0_gn efficientnet_blur_b0 efficientnet_cc_b0_4e efficientnet_es efficientnet_lite0 "
    "efficientnet_x_b3 efficientnetv2_rw_t gc_efficientnetv2_rw_t tf_efficientnet_b0 tf_efficientnetv2_b0 fbnetc_100 mixnet_s mnasnet_small "
    "semnasnet_050 spnasnet_100 mobilenetv1_100 mobilenetv2_035 mobilenet_edgetpu_v2_xs tinynet_e",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "ghostnet": "ghostnet_050 ghostnetv2_100 ghostnetv3_050",
    "hardcorenas": "hardcorenas_a",
    "hgnet": "hgnet_tiny hgnetv2_b0",
    "hrnet": "hrnet_w18_small",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2@96",
    "inception_v3": "inception_v3@96",
    "inception_v4": "inception_v4@96",
    "lcnetv2": "lcnetv2_small",
    "mambaout": "mambaout_femto",
    "metaformer": "poolformer_s12 poolformerv2_s12 convformer_s18",
    "mobilenetv3": "mobilenetv3_small_050 mobilenetv4_conv_small_035 mobilenetv4_conv_blur_medium lcnet_035 fbnetv3_b",
    "nasnet": "nasnetalarge@96",
    "nfnet": "nf_regnet_b0 nf_resnet26 nfnet_l0 eca_nfnet_l0 dm_nfnet_f0",
    "pnasnet": "pnasnet5large@96",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002 regnety_002 regnetz_005 regnetv_040",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m0_9",
    "res2net": "res2net50_14w_8s res2next50",
    "resnest": "resnest14d",
    "resnet": "resnet10t resnet18 resnet26d resnetaa34d resnetblur18 seresnet18 ecaresnet26t resnet50_gn resnetrs50",
    "resnetv2": "resnetv2_18 resnetv2_50x1_bit resnetv2_50d_gn resnetv2_50d_evos resnetv2_50d_frn",
    "rexnet": "rexnet_100 rexnetr_100",
    "selecsls": "selecsls42b",
    "senet": "legacy_seresnet18",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "tresnet": "tresnet_m",
    "vgg": "vgg11 vgg11_bn",
    "vovnet": "vovnet39a ese_vovnet19b_slim_dw eca_vovnet39b",
    "xception": "legacy_xception",
    "xception_aligned": "xception41 xception41p",
}

CASES = tuple(_cases())

_ATTENTION = "attention in every block"
_HYBRID = "convolution and attention"
LEFT_OUT = {
    **dict.fromkeys(
        "beit cait crossvit davit deit eva gcvit gemma4_vit hiera hieradet_sam2 levit mvitv2 naflexvit nest pit pvt_v2 swin_transformer "
        "swin_transformer_v2 swin_transformer_v2_cr tiny_vit tnt twins vision_transformer vision_transformer_relpos vision_transformer_sam volo "
        "xcit convit".split(),
        _ATTENTION,
    ),
    **dict.fromkeys(
        "coat cpubone csatv2 edgenext efficientformer efficientformer_v2 efficientvit_mit efficientvit_msra lowformer maxxvit mobilenetv5 "
        "mobilevit nextvit shvit swiftformer visformer vitamin vision_transformer_hybrid".split(),
        _HYBRID,
    ),
    "byoanet": "residual networks with attention or lambda layers in place of the 3x3 convolution",
    "mlp_mixer": "no convolution beyond the patches: linear layers over tokens",
    "sequencer": "long short-term memory over rows and columns",
    "byobnet: bat_resnext26ts, resnet*_clip": "bilinear attention, attention pooling; the other members are here",
    "metaformer: caformer": "attention in the last stages; the pooling and convolution members are here",
    "mobilenetv3: mobilenetv4_hybrid": "multi-query attention; the convolution members are here",
    "fastvit: fastvit_sa, fastvit_ma": "attention in the last stage; the member without is here",
}

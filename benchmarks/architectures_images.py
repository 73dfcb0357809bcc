"""Families of torchvision and timm that are not convolutional throughout: attention, hybrids and mixers.

The smallest member of each, with fewer blocks and at the smallest image where its constructor allows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import shim  # noqa: F401  before torchvision
from torch import nn


@dataclass(frozen=True)
class Image:
    """One image classifier."""

    library: str
    family: str
    """timm: the module."""
    name: str
    size: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the explainer must be told."""
    batch: int = 2

    def create(self, classes: int) -> nn.Module:
        if self.library == "timm":
            import timm

            return timm.create_model(self.name, pretrained=False, num_classes=classes, **self.settings)
        import torchvision

        return getattr(torchvision.models, self.name)(weights=None, num_classes=classes, **self.settings)


RECORDED = {"gemma4_vit": "recorded: it branches on whether any patch is padding"}
ALONE = {"gcvit": "one image: in a batch, timm hands windows the global query of another image"}


def _timm(family: str, name: str, size: int = 64, **settings: Any) -> Image:
    notes = [f"{key}={value}" for key, value in settings.items() if key != "img_size"]
    notes += [remarks[family] for remarks in (RECORDED, ALONE) if family in remarks]
    options = {"record": True} if family in RECORDED else {}
    return Image("timm", family, name, size, settings, ", ".join(notes), options, batch=1 if family in ALONE else 2)


IMAGES = (
    _timm("beit", "beit_base_patch16_224", img_size=64, embed_dim=96, num_heads=4, depth=2, init_values=0.1),
    _timm("byoanet", "botnet26t_256", img_size=64),
    _timm("byoanet", "halonet26t", 256),
    _timm("byoanet", "lambda_resnet26t"),
    _timm("byobnet", "bat_resnext26ts", 256),
    _timm("cait", "cait_xxs24_224", img_size=64, depth=2),
    _timm("coat", "coat_tiny", img_size=64),
    _timm("convit", "convit_tiny", img_size=64),
    _timm("cpubone", "cpubone_nano"),
    _timm("crossvit", "crossvit_9_240", 240),
    _timm("csatv2", "csatv2", 128),
    _timm("davit", "davit_tiny", depths=(1, 1, 1, 1)),
    _timm("deit", "deit_tiny_distilled_patch16_224", img_size=64, depth=2),
    _timm("edgenext", "edgenext_xx_small"),
    _timm("efficientformer", "efficientformer_l1", 224),
    _timm("efficientformer_v2", "efficientformerv2_s0", 224),
    _timm("efficientvit_mit", "efficientvit_b0"),
    _timm("efficientvit_msra", "efficientvit_m0", img_size=64),
    _timm("eva", "eva02_tiny_patch14_224", 56, img_size=56, depth=2),
    _timm("fastvit", "fastvit_sa12"),
    _timm("gcvit", "gcvit_xxtiny", img_size=64),
    _timm("gemma4_vit", "gemma4_vit_167m", 96, depth=2),
    _timm("hiera", "hiera_tiny_224", img_size=64),
    _timm("hieradet_sam2", "sam2_hiera_tiny", 64),
    _timm("levit", "levit_128s", img_size=64),
    _timm("lowformer", "lowformer_b0"),
    _timm("maxxvit", "coatnet_pico_rw_224", img_size=64),
    _timm("maxxvit", "maxvit_pico_rw_256", img_size=64),
    _timm("metaformer", "caformer_s18"),
    _timm("mlp_mixer", "mixer_s32_224", img_size=64),
    _timm("mlp_mixer", "resmlp_12_224", img_size=64),
    _timm("mlp_mixer", "gmlp_ti16_224", img_size=64),
    _timm("mobilenetv3", "mobilenetv4_hybrid_medium"),
    _timm("mobilenetv5", "mobilenetv5_300m", channel_multiplier=0.25),
    _timm("mobilevit", "mobilevit_xxs"),
    _timm("mvitv2", "mvitv2_tiny", img_size=64),
    _timm("naflexvit", "naflexvit_base_patch16_gap", depth=2),
    _timm("nest", "nest_tiny", img_size=64),
    _timm("nextvit", "nextvit_small"),
    _timm("pit", "pit_ti_224", img_size=64),
    _timm("pvt_v2", "pvt_v2_b0"),
    _timm("sequencer", "sequencer2d_s", img_size=64, layers=(1, 1, 2, 1)),
    _timm("shvit", "shvit_s1"),
    _timm("swiftformer", "swiftformer_xs"),
    _timm("swin_transformer", "swin_tiny_patch4_window7_224", 56, img_size=56, depths=(2, 2, 2, 2)),
    _timm("swin_transformer_v2", "swinv2_tiny_window8_256", img_size=64, depths=(2, 2, 2, 2)),
    _timm("swin_transformer_v2_cr", "swinv2_cr_tiny_224", img_size=64, depths=(2, 2, 2, 2)),
    _timm("tiny_vit", "tiny_vit_5m_224"),
    _timm("tnt", "tnt_s_patch16_224", img_size=64, depth=2),
    _timm("twins", "twins_pcpvt_small", img_size=64),
    _timm("visformer", "visformer_tiny", img_size=64),
    _timm("vision_transformer", "vit_tiny_patch16_224", img_size=64, depth=2),
    _timm("vision_transformer_hybrid", "vit_tiny_r_s16_p8_224", img_size=64, depth=2),
    _timm("vision_transformer_relpos", "vit_relpos_small_patch16_224", img_size=64, depth=2),
    _timm("vision_transformer_sam", "samvit_base_patch16_224", img_size=64, depth=2, embed_dim=96, num_heads=4),
    _timm("vitamin", "vitamin_small_224", img_size=64),
    _timm("volo", "volo_d1_224", img_size=64),
    _timm("xcit", "xcit_nano_12_p16_224", depth=2),
    Image("torchvision", "maxvit", "maxvit_t", 224),
    Image("torchvision", "swin_transformer", "swin_t", 64),
    Image("torchvision", "swin_transformer", "swin_v2_t", 64),
    Image("torchvision", "vision_transformer", "vit_b_16", 64, {"image_size": 64}),
)

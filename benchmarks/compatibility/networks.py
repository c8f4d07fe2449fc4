"""Networks that are looked at: own ones, and those of PyTorch, transformers, torchvision and timm, at random weights.

Those of transformers are built from small configurations; those of torchvision and timm are of their own width, at
small images.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lt_lightning.pruning.examples import Example

Source = Literal["own", "PyTorch", "transformers", "torchvision", "timm"]


@dataclass(frozen=True)
class Case:
    """A network to look at.

    Attributes:
        name: name in the table.
        source: where its class is from.
        make: function that makes it.
        example: a batch of one sample.
    """

    name: str
    source: Source
    make: Callable[[], nn.Module]
    example: Example


def cases() -> list[Case]:
    """Return the networks whose packages are there, in the order of the table."""
    return [
        *_own(),
        *_pytorch(),
        *(_transformers() if _is_there("transformers") else []),
        *(_torchvision() if _is_there("torchvision") else []),
        *(_timm() if _is_there("timm") else []),
    ]


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def import_torchvision() -> Any:
    """Import torchvision, also one whose compiled operators were built for another PyTorch; no network here calls them."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
            _KEPT.append(library)
        return importlib.import_module("torchvision")


_KEPT: list[torch.library.Library] = []


def _image(size: int, channels: int = 3) -> Tensor:
    return torch.zeros(1, channels, size, size)


def _tokens(length: int = 12) -> Tensor:
    return torch.arange(length)[None] + 1


# Own, and PyTorch's


def _own() -> list[Case]:
    from lt_lightning.models.mobilenet import MobileNet
    from lt_lightning.models.resnet import cifar_resnet, resnet18, resnet50
    from lt_lightning.models.vgg import VGG

    return [
        Case("ResNet-20", "own", lambda: cifar_resnet(20, 10), _image(32)),
        Case("ResNet-18", "own", lambda: resnet18(10), _image(32)),
        Case("ResNet-50", "own", lambda: resnet50(10), _image(64)),
        Case("VGG-16", "own", lambda: VGG(16, 10), _image(32)),
        Case("MobileNet", "own", lambda: MobileNet(10), _image(32)),
        Case("U-Net", "own", UNet, _image(32)),
        Case("LSTM classifier", "own", LSTMClassifier, _tokens()),
    ]


def _pytorch() -> list[Case]:
    return [Case("TransformerEncoder", "PyTorch", EncoderClassifier, _tokens())]


class UNet(nn.Module):
    """A U-Net with transposed convolutions; its outputs have the size of the image."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * a, a, 2, 2) for a in widths[-2::-1])
        self.joined = nn.ModuleList(_double(2 * a, a) for a in widths[-2::-1])
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 3, h, w) to (n, 5, h, w)."""
        levels = []
        for down in self.down:
            levels.append(down(nn.functional.max_pool2d(levels[-1], 2) if levels else x))
        x = levels.pop()
        for up, joined in zip(self.up, self.joined, strict=True):
            x = joined(torch.cat([levels.pop(), up(x)], 1))
        out: Tensor = self.head(x)
        return out


def _double(inputs: int, outputs: int) -> nn.Sequential:
    steps: list[nn.Module] = []
    for width in (inputs, outputs):
        steps += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*steps)


class LSTMClassifier(nn.Module):
    """An LSTM over token ids, and a perceptron on its last result."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 32)
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.hidden = nn.Linear(64, 128)
        self.classifier = nn.Linear(128, 5)

    def forward(self, ids: Tensor) -> Tensor:
        """Map (n, tokens) to (n, 5)."""
        out: Tensor = self.classifier(torch.relu(self.hidden(self.lstm(self.embedding(ids))[0][:, -1])))
        return out


class EncoderClassifier(nn.Module):
    """PyTorch's transformer encoder over token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classifier = nn.Linear(64, 5)

    def forward(self, ids: Tensor) -> Tensor:
        """Map (n, tokens) to (n, 5)."""
        out: Tensor = self.classifier(self.encoder(self.embedding(ids)).mean(1))
        return out


# transformers, from small configurations


def _transformers() -> list[Case]:
    ids = {"input_ids": _tokens()}
    vision: dict[str, Any] = {"image_size": 32, "patch_size": 8}
    stages: dict[str, Any] = {"depths": [2, 2], "hidden_sizes": [32, 64]}
    vit: dict[str, Any] = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256,
    }  # fmt: skip
    text: dict[str, Any] = {"vocab_size": 60, **vit}
    shared: dict[str, Any] = {**text, "num_key_value_heads": 2}
    t5: dict[str, Any] = {"vocab_size": 60, "d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 2, "num_heads": 4}
    bart: dict[str, Any] = {
        "vocab_size": 60, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
    }  # fmt: skip
    swin: dict[str, Any] = {
        "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32, "patch_size": 2,
    }  # fmt: skip
    classes = "ForImageClassification"
    rows: list[tuple[str, str, dict[str, Any], Example]] = [
        ("ResNet", classes, {"embedding_size": 32, **stages}, _image(32)),
        ("RegNet", classes, {"embedding_size": 32, "groups_width": 8, **stages}, _image(32)),
        ("MobileNetV1", classes, {"image_size": 64, "depth_multiplier": 0.5}, _image(64)),
        ("MobileNetV2", classes, {"image_size": 64, "depth_multiplier": 0.5}, _image(64)),
        ("EfficientNet", classes, {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}, _image(64)),
        ("ConvNext", classes, {"num_stages": 2, "image_size": 32, **stages}, _image(32)),
        ("ConvNextV2", classes, {"num_stages": 2, "image_size": 32, **stages}, _image(32)),
        ("ViT", classes, {**vit, **vision}, _image(32)),
        ("DeiT", classes, {**vit, **vision}, _image(32)),
        ("Beit", classes, {**vit, **vision, "use_relative_position_bias": True}, _image(32)),
        ("Dinov2", classes, {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **vision}, _image(32)),
        ("Swin", classes, swin, _image(32)),
        ("Swinv2", classes, swin, _image(32)),
        ("Segformer", classes, {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [32, 64], "num_attention_heads": [2, 4], "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2]}, _image(32)),
        ("PoolFormer", classes, {"num_encoder_blocks": 2, **stages, "patch_sizes": [3, 3], "strides": [2, 2], "padding": [1, 1], "mlp_ratio": 2.0}, _image(32)),
        ("Bert", "ForSequenceClassification", text, ids),
        ("Roberta", "ForSequenceClassification", {**text, "pad_token_id": 0}, ids),
        ("Albert", "ForSequenceClassification", {**text, "embedding_size": 32}, ids),
        ("Electra", "ForSequenceClassification", text, ids),
        ("DistilBert", "ForSequenceClassification", {"vocab_size": 60, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 256}, ids),
        ("GPT2", "LMHeadModel", {"vocab_size": 60, "n_embd": 64, "n_layer": 2, "n_head": 4}, ids),
        ("GPTNeoX", "ForCausalLM", text, ids),
        ("OPT", "ForCausalLM", {"vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 256, "word_embed_proj_dim": 64}, ids),
        ("Llama", "ForCausalLM", shared, ids),
        ("Mistral", "ForCausalLM", shared, ids),
        ("Qwen2", "ForCausalLM", shared, ids),
        ("Gemma", "ForCausalLM", {**shared, "head_dim": 16}, ids),
        ("T5", "ForConditionalGeneration", t5, {**ids, "decoder_input_ids": _tokens(6)}),
        ("Bart", "ForSequenceClassification", bart, {"input_ids": torch.tensor([[5, 6, 7, 8, 9, 2]])}),
    ]  # fmt: skip
    return [
        Case(name, "transformers", lambda name=name, head=head, how=how: _from_transformers(name, head, how), example)  # type: ignore[misc]
        for name, head, how, example in rows
    ]


def _from_transformers(name: str, head: str, how: dict[str, Any]) -> nn.Module:
    library = importlib.import_module("transformers")
    network: nn.Module = getattr(library, f"{name}{head}")(getattr(library, f"{name}Config")(**how))
    return network


# torchvision and timm


def _torchvision() -> list[Case]:
    models = import_torchvision().models
    plain = {
        "resnet18": 64, "resnet50": 64, "resnext50_32x4d": 64, "wide_resnet50_2": 64, "regnet_y_400mf": 64,
        "regnet_x_400mf": 64, "densenet121": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64,
        "mobilenet_v3_large": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64, "mnasnet1_0": 64,
        "shufflenet_v2_x1_0": 64, "squeezenet1_1": 64, "alexnet": 64, "vgg11_bn": 32, "convnext_tiny": 64,
        "swin_t": 64,
    }  # fmt: skip
    found = [
        Case(name, "torchvision", lambda name=name: getattr(models, name)(weights=None), _image(size))  # type: ignore[misc]
        for name, size in plain.items()
    ]
    auxiliary: dict[str, Any] = {"weights": None, "aux_logits": True, "init_weights": False}
    segmentation: dict[str, Any] = {"weights": None, "weights_backbone": None, "aux_loss": True}
    vit: dict[str, Any] = {"image_size": 64, "patch_size": 16, "num_layers": 4, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768}  # fmt: skip
    return [
        *found,
        Case("googlenet", "torchvision", lambda: models.googlenet(**auxiliary), _image(96)),
        Case("inception_v3", "torchvision", lambda: models.inception_v3(**auxiliary), _image(139)),
        Case("VisionTransformer", "torchvision", lambda: models.VisionTransformer(**vit), _image(64)),
        Case("fcn_resnet50", "torchvision", lambda: models.segmentation.fcn_resnet50(**segmentation), _image(64)),
        Case(
            "deeplabv3_resnet50",
            "torchvision",
            lambda: models.segmentation.deeplabv3_resnet50(**segmentation),
            _image(64),
        ),
        Case(
            "lraspp_mobilenet_v3_large",
            "torchvision",
            lambda: models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None),
            _image(64),
        ),
    ]


def _timm() -> list[Case]:
    import_torchvision()
    timm = importlib.import_module("timm")
    sizes: dict[str, dict[str, Any]] = {
        "vit_tiny_patch16_224": {"img_size": 64},
        "deit_tiny_patch16_224": {"img_size": 64},
        "mixer_s32_224": {"img_size": 64},
        "swin_tiny_patch4_window7_224": {"img_size": 56},
        "convnext_atto": {},
        "efficientnet_b0": {},
        "mobilenetv3_small_100": {},
        "resnext26ts": {},
        "regnety_002": {},
        "poolformer_s12": {},
    }  # fmt: skip
    return [
        Case(
            name,
            "timm",
            lambda name=name, how=how: timm.create_model(name, pretrained=False, **how),  # type: ignore[misc]
            _image(how.get("img_size", 64)),
        )
        for name, how in sizes.items()
    ]

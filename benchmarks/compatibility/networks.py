"""Networks that are looked at: own ones, and those of PyTorch, transformers, torchvision and timm, at random weights.

Large ones are built from small configurations, so that all are looked at in some minutes; images are small.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
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
        heads: layers that write results of the network beside the last one.
    """

    name: str
    source: Source
    make: Callable[[], nn.Module]
    example: Example
    heads: tuple[str, ...] = ()


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
    """Import torchvision, also one whose compiled operators are for another PyTorch; no network here calls them."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        _stand_ins()
        return importlib.import_module("torchvision")


@cache
def _stand_ins() -> torch.library.Library:
    """Define the operators that torchvision describes when it is imported; they live as long as what is returned."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")  # type: ignore[no-untyped-call]
    return library


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
        Case("VGG-16", "own", lambda: VGG(16, 10, width=16), _image(32)),
        Case("MobileNet", "own", lambda: MobileNet(10, width=16), _image(32)),
        Case("U-Net", "own", UNet, _image(32)),
        Case("LSTM classifier", "own", LSTMClassifier, _tokens()),
    ]


def _pytorch() -> list[Case]:
    return [Case("TransformerEncoder", "PyTorch", EncoderClassifier, _tokens())]


class UNet(nn.Module):
    """A U-Net with transposed convolutions; its outputs have the size of the image."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * a, a, 2, 2) for a in widths[-2::-1])
        self.joined = nn.ModuleList(_double(2 * a, a) for a in widths[-2::-1])
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 3, h, w) to (n, 5, h, w)."""
        levels: list[Tensor] = []
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
    efficient: dict[str, Any] = {
        "image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640,
    }  # fmt: skip
    pyramid: dict[str, Any] = {
        "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [32, 64], "patch_sizes": [3, 3], "strides": [2, 2],
    }  # fmt: skip
    segformer: dict[str, Any] = {**pyramid, "sr_ratios": [2, 1], "num_attention_heads": [2, 4], "mlp_ratios": [2, 2]}
    poolformer: dict[str, Any] = {**pyramid, "padding": [1, 1], "mlp_ratio": 2.0}
    dinov2: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **vision}
    distilbert: dict[str, Any] = {"vocab_size": 60, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 256}
    opt: dict[str, Any] = {
        "vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 256,
        "word_embed_proj_dim": 64,
    }  # fmt: skip
    images, sequences = "ForImageClassification", "ForSequenceClassification"
    rows: list[tuple[str, str, dict[str, Any], Example]] = [
        ("ResNet", images, {"embedding_size": 32, **stages}, _image(32)),
        ("RegNet", images, {"embedding_size": 32, "groups_width": 8, **stages}, _image(32)),
        ("MobileNetV1", images, {"image_size": 64, "depth_multiplier": 0.5}, _image(64)),
        ("MobileNetV2", images, {"image_size": 64, "depth_multiplier": 0.5}, _image(64)),
        ("EfficientNet", images, efficient, _image(64)),
        ("ConvNext", images, {"num_stages": 2, "image_size": 32, **stages}, _image(32)),
        ("ConvNextV2", images, {"num_stages": 2, "image_size": 32, **stages}, _image(32)),
        ("ViT", images, {**vit, **vision}, _image(32)),
        ("DeiT", images, {**vit, **vision}, _image(32)),
        ("Beit", images, {**vit, **vision, "use_relative_position_bias": True}, _image(32)),
        ("Dinov2", images, dinov2, _image(32)),
        ("Swin", images, swin, _image(32)),
        ("Swinv2", images, swin, _image(32)),
        ("Segformer", images, segformer, _image(32)),
        ("PoolFormer", images, poolformer, _image(32)),
        ("Bert", sequences, text, ids),
        ("Roberta", sequences, {**text, "pad_token_id": 0}, ids),
        ("Albert", sequences, {**text, "embedding_size": 32}, ids),
        ("Electra", sequences, text, ids),
        ("DistilBert", sequences, distilbert, ids),
        ("GPT2", "LMHeadModel", {"vocab_size": 60, "n_embd": 64, "n_layer": 2, "n_head": 4}, ids),
        ("GPTNeoX", "ForCausalLM", text, ids),
        ("OPT", "ForCausalLM", opt, ids),
        ("Llama", "ForCausalLM", shared, ids),
        ("Mistral", "ForCausalLM", shared, ids),
        ("Qwen2", "ForCausalLM", shared, ids),
        ("Gemma", "ForCausalLM", {**shared, "head_dim": 16}, ids),
        ("T5", "ForConditionalGeneration", t5, {**ids, "decoder_input_ids": _tokens(6)}),
        ("Bart", sequences, bart, {"input_ids": torch.tensor([[5, 6, 7, 8, 9, 2]])}),
    ]
    return [
        Case(name, "transformers", partial(_from_transformers, name, head, how), example)
        for name, head, how, example in rows
    ]


def _from_transformers(name: str, head: str, how: dict[str, Any]) -> nn.Module:
    library = importlib.import_module("transformers")
    config = getattr(library, f"{name}Config")(**how)
    config.use_cache = False  # which Torch-Pruning cannot follow
    network: nn.Module = getattr(library, f"{name}{head}")(config)
    return network


# torchvision and timm


def _torchvision() -> list[Case]:
    models = import_torchvision().models
    names = [
        "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0",
        "shufflenet_v2_x0_5", "mnasnet0_5", "squeezenet1_1", "regnet_y_400mf",
    ]  # fmt: skip
    auxiliary: dict[str, Any] = {"weights": None, "aux_logits": True, "init_weights": False}
    blocks = {"block": models.resnet.Bottleneck, "layers": [1, 1, 1, 1]}
    dilated = {**blocks, "replace_stride_with_dilation": [False, True, True], "width_per_group": 16}
    dense = {"growth_rate": 16, "block_config": (3, 3, 3), "num_init_features": 32}
    setting = models.convnext.CNBlockConfig
    stages = [setting(32, 64, 2), setting(64, 128, 2), setting(128, None, 2)]
    vit: dict[str, Any] = {
        "image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 256,
    }  # fmt: skip
    swin: dict[str, Any] = {
        "patch_size": [2, 2], "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4],
    }  # fmt: skip
    fcn, deeplab = models.segmentation.fcn, models.segmentation.deeplabv3
    makers: dict[str, tuple[Callable[[], nn.Module], int]] = {
        **{name: (partial(getattr(models, name), weights=None), 64) for name in names},
        "ResNet": (partial(models.ResNet, **blocks, width_per_group=16), 64),
        "ResNeXt": (partial(models.ResNet, **blocks, groups=8, width_per_group=4), 64),
        "DenseNet": (partial(models.DenseNet, **dense), 64),
        "ConvNeXt": (partial(models.ConvNeXt, stages), 64),
        "VisionTransformer": (partial(models.VisionTransformer, **vit), 32),
        "SwinTransformer": (partial(models.SwinTransformer, **swin), 32),
        "googlenet": (partial(models.googlenet, **auxiliary), 64),
        "FCN": (lambda: fcn._fcn_resnet(models.ResNet(**dilated), 5, True), 64),
        "DeepLabV3": (lambda: deeplab._deeplabv3_resnet(models.ResNet(**dilated), 5, True), 64),
    }
    heads = dict.fromkeys(("FCN", "DeepLabV3"), ("classifier.4",))  # the last one that runs is the auxiliary one
    return [Case(name, "torchvision", make, _image(size), heads.get(name, ())) for name, (make, size) in makers.items()]


def _timm() -> list[Case]:
    import_torchvision()
    timm = importlib.import_module("timm")
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
    how: dict[str, dict[str, Any]] = {
        "vit_tiny_patch16_224": vit,
        "deit_tiny_distilled_patch16_224": vit,
        "convnext_atto": {"depths": (1, 1, 1, 1)},
        "mobilenetv3_small_050": {},
        "regnety_002": {},
    }
    mixer = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "num_blocks": 2}
    return [
        Case("MlpMixer", "timm", partial(timm.models.mlp_mixer.MlpMixer, **mixer), _image(32)),
        *(
            Case(name, "timm", partial(timm.create_model, name, pretrained=False, **of), _image(of.get("img_size", 64)))
            for name, of in how.items()
        ),
    ]

"""Tiny models with random weights, written as a hospital would have them on disk."""

import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "no",
    "mass",
    "seen",
    "in",
    "the",
    "left",
    "lung",
    "heart",
    "is",
    "enlarged",
    ".",
]
IMAGE = {
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.25],
    "image_processor_type": "ViTImageProcessor",
}


def vit(folder: Path, *, seed=0) -> Path:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(config).eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGE))
    return folder


def resnet(folder: Path, *, seed=0) -> Path:
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    ResNetModel(config).eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGE))
    return folder


def bert(folder: Path, *, seed=0) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
    )
    BertModel(config).eval().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab={word: k for k, word in enumerate(WORDS)}, model_max_length=24).save_pretrained(folder)
    return folder


class Windows(nn.Module):
    """(k, 3, samples) to (k, 6): convolution, batch norm, attention, LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(3, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.MaxPool1d(2)
        )
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 3, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("shift", torch.linspace(0, 1, 6))
        self.register_buffer("hidden", torch.ones(6), persistent=False)

    def forward(self, x):
        x = self.body(x).transpose(1, 2)
        x = self.dropout(nn.functional.gelu(x + self.attention(x, x, x)[0], approximate="tanh"))
        return self.lstm(x)[0].mean(1) + self.shift + self.hidden


class Maps(nn.Module):
    """(k, channels, ...) to maps (k, 5, ...)."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.GroupNorm) if dims == 2 else (nn.Conv3d, nn.GroupNorm)
        self.body = nn.Sequential(conv(channels, 6, 3, stride=2), norm(2, 6), nn.SiLU(), conv(6, 5, 1))

    def forward(self, x):
        return self.body(x)


def export(path: Path, network: nn.Module, example: torch.Tensor, *, any_number=True) -> Path:
    dynamic = ({0: torch.export.Dim("items")},) if any_number else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch.export of the buffers of its own LSTM
        program = torch.export.export(network, (example,), dynamic_shapes=dynamic)
    torch.export.save(program, path)
    return path


def windows(*, seed=0) -> nn.Module:
    torch.manual_seed(seed)
    network = Windows().eval()
    for part in network.modules():  # statistics of a batch norm that was trained
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return network


def windows_pt2(path: Path, *, seed=0) -> Path:
    return export(path, windows(seed=seed), torch.randn(4, 3, 100))


NETWORK = {"_target_": "SegResNet", "spatial_dims": "@dims", "in_channels": 1, "out_channels": 2, "init_filters": 8}


def bundle(folder: Path, *, seed=0, network=None) -> Path:
    from monai.networks.nets import SegResNet

    torch.manual_seed(seed)
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    config = {"dims": 3, "network_def": network or NETWORK, "output_dir": "$import os"}
    (folder / "configs/inference.json").write_text(json.dumps(config))
    meta = {"version": "0.1", "network_data_format": {"inputs": {"image": {"num_channels": 1}}}}
    (folder / "configs/metadata.json").write_text(json.dumps(meta))
    model = SegResNet(spatial_dims=3, in_channels=1, out_channels=2, init_filters=8)
    save_file(model.state_dict(), folder / "models/model.safetensors")
    return folder

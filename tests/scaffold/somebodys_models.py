"""Models from no library: their blocks' outputs are unlike those that any of LayerSync's adapters describes.

One has registers in front of the image and the text behind it; the blocks of the other return a dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        assert width % heads == 0, f"width {width} is not a multiple of {heads} heads"
        self.heads = heads
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class JointBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.shift = nn.Linear(width, width)

    def forward(self, joint: Tensor, temb: Tensor) -> Tensor:
        joint = joint + self.attention(self.norm(joint) + self.shift(temb)[:, None])
        return joint + self.mlp(joint)


class Patchify(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(2).transpose(1, 2)


class RegisterTransformer(nn.Module):
    """[registers, image, text] in every block; written for images of 1024 pixels and 40 blocks."""

    def __init__(
        self,
        in_channels: int = 32,
        patch_size: int = 2,
        hidden_size: int = 3072,
        num_heads: int = 24,
        depth: int = 40,
        text_dim: int = 4096,
        num_registers: int = 8,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.patchify = Patchify(in_channels, hidden_size, patch_size, patch_size)
        self.embed_text, self.embed_time = nn.Linear(text_dim, hidden_size), nn.Linear(1, hidden_size)
        self.registers = nn.Parameter(torch.randn(1, num_registers, hidden_size))
        self.blocks = nn.ModuleList(JointBlock(hidden_size, num_heads) for _ in range(depth))
        self.final = nn.Linear(hidden_size, in_channels * patch_size**2)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        batch, _, rows, columns = x.shape
        image = self.patchify(x)
        joint = torch.cat([self.registers.expand(batch, -1, -1), image, self.embed_text(context)], dim=1)
        temb = self.embed_time(t[:, None])
        for block in self.blocks:
            joint = block(joint, temb)
        start = self.registers.shape[1]
        tokens = self.final(joint[:, start : start + image.shape[1]])
        return nn.functional.fold(tokens.transpose(1, 2), (rows, columns), self.patch_size, stride=self.patch_size)


@dataclass
class Streams:
    """What a block returns."""

    video: Tensor
    text: Tensor


class StreamBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.joint, self.video, self.text = JointBlock(dim, heads), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, streams: Streams, temb: Tensor) -> Streams:
        length = streams.video.shape[1]
        joint = self.joint(torch.cat([streams.video, streams.text], dim=1), temb)
        return Streams(streams.video + self.video(joint[:, :length]), streams.text + self.text(joint[:, length:]))


class StreamTransformer(nn.Module):
    """A video model whose constructor has no defaults."""

    def __init__(
        self, channels: int, patch_size: tuple[int, int, int], dim: int, heads: int, layers: int, caption_dim: int
    ):
        super().__init__()
        self.patch_size = patch_size
        self.embedder = nn.Conv3d(channels, dim, patch_size, patch_size)
        self.caption, self.time = nn.Linear(caption_dim, dim), nn.Linear(1, dim)
        self.layers = nn.ModuleList(StreamBlock(dim, heads) for _ in range(layers))
        self.head = nn.Linear(dim, channels * patch_size[0] * patch_size[1] * patch_size[2])

    def forward(self, latents: Tensor, sigma: Tensor, caption: Tensor, caption_mask: Tensor) -> Tensor:
        batch, channels, frames, rows, columns = latents.shape
        step, height, width = self.patch_size
        video = self.embedder(latents).flatten(2).transpose(1, 2)
        streams = Streams(video, self.caption(caption) * caption_mask[..., None])
        for layer in self.layers:
            streams = layer(streams, self.time(sigma[:, None]))
        tokens = self.head(streams.video).unflatten(-1, (channels, step, height, width))
        tokens = tokens.unflatten(1, (frames // step, rows // height, columns // width))
        return tokens.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, channels, frames, rows, columns)


class MMDiT(RegisterTransformer):
    """Has the name of a class that one of LayerSync's adapters knows."""


class Edges:
    """An argument that cannot be guessed."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights


class GraphTransformer(nn.Module):
    """Needs edges between its tokens."""

    def __init__(self, channels: int = 4, dim: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(channels, dim), nn.Linear(dim, channels)
        self.blocks = nn.ModuleList(JointBlock(dim, 2) for _ in range(depth))
        self.time = nn.Linear(1, dim)

    def forward(self, x: Tensor, t: Tensor, edges: Edges) -> Tensor:
        joint = self.embed(x)
        joint = joint + edges.weights.mean()
        for block in self.blocks:
            joint = block(joint, self.time(t[:, None]))
        return self.out(joint)


class NeedsAFile(nn.Module):
    def __init__(self) -> None:
        raise FileNotFoundError("no weights are there")


class Engine:
    pass


class NeedsAnEngine(nn.Module):
    def __init__(self, engine: Engine) -> None:
        super().__init__()


class TakesNothing(nn.Module):
    def forward(self, *args: Tensor) -> Tensor:
        return args[0]


class NeverRuns(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("not this way")

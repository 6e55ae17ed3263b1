"""A small diffusion transformer in plain PyTorch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Patchify(nn.Module):
    """Cut latents (B, C, H, W) into patches, one token each: (B, S, D)."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        return self.proj(latents).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and a feed-forward layer over the tokens of text and image, both modulated by the time."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.qkv, self.out = nn.Linear(hidden_size, 3 * hidden_size), nn.Linear(hidden_size, hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size)
        )
        self.modulation = nn.Linear(hidden_size, 2 * hidden_size)

    def forward(self, tokens: Tensor, temb: Tensor) -> Tensor:
        gate_attention, gate_mlp = self.modulation(temb)[:, None].chunk(2, dim=-1)
        q, k, v = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + gate_attention * self.out(attended)
        return tokens + gate_mlp * self.mlp(self.norm2(tokens))


class MyTransformer(nn.Module):
    """Blocks over one sequence, the text in front and the image behind it."""

    def __init__(
        self,
        in_channels: int = 4,
        patch_size: int = 2,
        hidden_size: int = 768,
        num_heads: int = 12,
        num_layers: int = 24,
        text_dim: int = 1024,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.patchify = Patchify(in_channels, hidden_size, patch_size)
        self.embed_text, self.embed_time = nn.Linear(text_dim, hidden_size), nn.Linear(1, hidden_size)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads) for _ in range(num_layers))
        self.head = nn.Linear(hidden_size, in_channels * patch_size**2)

    def forward(self, latents: Tensor, prompt_embeds: Tensor, timestep: Tensor) -> Tensor:
        image, text = self.patchify(latents), self.embed_text(prompt_embeds)
        tokens, temb = torch.cat([text, image], dim=1), self.embed_time(timestep[:, None])
        for block in self.blocks:
            tokens = block(tokens, temb)
        patches = self.head(tokens[:, text.shape[1] :]).transpose(1, 2)
        return F.fold(patches, latents.shape[2:], self.patch_size, stride=self.patch_size)

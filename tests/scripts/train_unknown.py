"""Train a small model of a class that no adapter knows, and write its gradients: an unmodified script."""

import sys

import torch
from torch import nn


class PairBlock(nn.Module):
    """Returns (image, text)."""

    def __init__(self):
        super().__init__()
        self.inner, self.mix = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, image, text):
        both = torch.cat([text, image], dim=1)
        both = both + torch.tanh(self.inner(both)) + self.mix(both).mean(dim=1, keepdim=True)
        return both[:, text.shape[1] :], both[:, : text.shape[1]]


class PairTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed, self.text_embed = nn.Conv2d(4, 16, 2, stride=2), nn.Linear(8, 16)
        self.transformer_blocks = nn.ModuleList(PairBlock() for _ in range(4))
        self.proj_out = nn.Linear(16, 16)

    def forward(self, latents, text):
        image, text = self.patch_embed(latents).flatten(2).transpose(1, 2), self.text_embed(text)
        for block in self.transformer_blocks:
            image, text = block(image, text)
        return nn.functional.fold(self.proj_out(image).transpose(1, 2), latents.shape[2:], 2, stride=2)


torch.manual_seed(0)
model = PairTransformer()
for weight in model.parameters():
    torch.nn.init.normal_(weight, std=0.2)
optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
gradients = []
for step in range(3):
    generator = torch.Generator().manual_seed(step)
    prediction = model(torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 8, generator=generator))
    loss = (prediction - torch.randn(2, 4, 8, 8, generator=generator)).pow(2).mean()
    loss.backward()
    gradients.append(
        {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    )
    optimiser.step()
    optimiser.zero_grad()
torch.save(gradients, sys.argv[1])

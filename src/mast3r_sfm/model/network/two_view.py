"""The two-view network: shared encoder, two decoders that look at each other, a head per view.

See docs/method.md, Network.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from mast3r_sfm.model.config import ModelConfig
from mast3r_sfm.model.network.blocks import DecoderBlock, EncoderBlock, LayerNorm
from mast3r_sfm.model.network.heads import Head, HeadOutput
from mast3r_sfm.model.network.operations import Operations, choose_operations
from mast3r_sfm.model.network.rope import RopeTable, rope_table


class PatchEmbed(nn.Module):
    """Image -> tokens, row-major."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.proj(images.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class TwoViewNetwork(nn.Module):
    """MASt3R and DUSt3R. Parameter names and shapes are those of the published state dicts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        enc, dec = config.enc_embed_dim, config.dec_embed_dim
        self.patch_embed = PatchEmbed(config.patch_size, enc)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dec), requires_grad=False)  # of the pre-training, unused
        self.enc_blocks = nn.ModuleList(EncoderBlock(enc, config.enc_num_heads) for _ in range(config.enc_depth))
        self.enc_norm = LayerNorm(enc)
        self.decoder_embed = nn.Linear(enc, dec)
        self.dec_blocks = nn.ModuleList(DecoderBlock(dec, config.dec_num_heads) for _ in range(config.dec_depth))
        self.dec_blocks2 = nn.ModuleList(DecoderBlock(dec, config.dec_num_heads) for _ in range(config.dec_depth))
        self.dec_norm = LayerNorm(dec)
        self.downstream_head1 = Head(config)
        self.downstream_head2 = Head(config)

    def grid(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of tokens of an image of `shape` (H, W), which must be multiples of the patch size."""
        patch = self.config.patch_size
        if shape[0] % patch or shape[1] % patch or min(shape) < patch:
            raise ValueError(f"image of {shape[1]}x{shape[0]} pixels is not a multiple of the patch size {patch}")
        return shape[0] // patch, shape[1] // patch

    def _rope(self, grid: tuple[int, int], width: int, heads: int, device: torch.device) -> RopeTable:
        return rope_table(grid, width // heads, self.config.rope_base, device)

    def _operations(self, device: torch.device) -> Operations:
        return choose_operations(device, self.decoder_embed.weight.dtype)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) images in [-1, 1] -> (B, N, enc_embed_dim) float32 tokens."""
        config = self.config
        grid = self.grid((images.shape[-2], images.shape[-1]))
        rope = self._rope(grid, config.enc_embed_dim, config.enc_num_heads, images.device)
        ops = self._operations(images.device)
        x = self.patch_embed(images).float()
        for block in self.enc_blocks:
            x = block(x, rope, ops)
        return self.enc_norm(x)

    def decode_tokens(
        self,
        tokens1: torch.Tensor,
        tokens2: torch.Tensor,
        grid1: tuple[int, int],
        grid2: tuple[int, int],
        ops: Operations,
        layers: Collection[int] | None = None,
    ) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
        """Encoder tokens of both views -> their tokens by layer, as the heads read them, in the type of the weights.

        Layer 0 is the encoder's (not projected), the last is normalised; of those between, `layers` are kept
        (None: all).
        """
        config = self.config
        width, heads = config.dec_embed_dim, config.dec_num_heads
        rope1 = self._rope(grid1, width, heads, tokens1.device)
        rope2 = self._rope(grid2, width, heads, tokens2.device)
        dtype = self.decoder_embed.weight.dtype
        kept1, kept2 = {0: tokens1.to(dtype)}, {0: tokens2.to(dtype)}
        x1 = ops.linear(self.decoder_embed, kept1[0]).float()
        x2 = ops.linear(self.decoder_embed, kept2[0]).float()
        for layer, (block1, block2) in enumerate(zip(self.dec_blocks, self.dec_blocks2, strict=True), 1):
            # both from the layer before
            x1, x2 = block1(x1, x2, rope1, rope2, ops), block2(x2, x1, rope2, rope1, ops)
            if (layers is None or layer in layers) and layer < config.dec_depth:
                kept1[layer], kept2[layer] = x1.to(dtype), x2.to(dtype)
        kept1[config.dec_depth] = ops.normalise(x1, self.dec_norm, dtype)
        kept2[config.dec_depth] = ops.normalise(x2, self.dec_norm, dtype)
        return kept1, kept2

    def decode(
        self, tokens1: torch.Tensor, tokens2: torch.Tensor, shape1: tuple[int, int], shape2: tuple[int, int]
    ) -> tuple[HeadOutput, HeadOutput]:
        """Encoder tokens (B, N, width) of views 1 and 2, shapes (H, W) -> maps of both, all in camera 1's frame."""
        grid1, grid2 = self.grid(shape1), self.grid(shape2)
        head1, head2 = self.downstream_head1, self.downstream_head2
        ops = self._operations(tokens1.device)
        kept1, kept2 = self.decode_tokens(tokens1, tokens2, grid1, grid2, ops, head1.layers)
        out1 = head1(kept1, grid1, ops)
        kept1.clear()  # not held beside the other head's activations
        return out1, head2(kept2, grid2, ops)

    def forward(self, images1: torch.Tensor, images2: torch.Tensor) -> tuple[HeadOutput, HeadOutput]:
        """(B, 3, H, W) images of views 1 and 2, in shapes of their own -> maps of both in camera 1's frame."""
        shape1 = (images1.shape[-2], images1.shape[-1])
        shape2 = (images2.shape[-2], images2.shape[-1])
        if shape1 == shape2:
            tokens1, tokens2 = self.encode(torch.cat([images1, images2])).chunk(2)
        else:
            tokens1, tokens2 = self.encode(images1), self.encode(images2)
        return self.decode(tokens1, tokens2, shape1, shape2)

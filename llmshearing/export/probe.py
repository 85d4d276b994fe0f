"""What a masked model computes on a fixed input, to be compared with the folder it was exported to.

The probe is computed as exactly as the model can: without TF32, and with PyTorch's own attention instead of a kernel
that takes no float32. Afterwards sharded parameters are sharded again: FSDP2 leaves those of the root module gathered
after a forward pass without backward, in the precision it computed in.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PretrainedConfig

from llmshearing.compat.torch import reshard
from llmshearing.compat.transformers import attention_implementation, attention_of, set_attention
from llmshearing.models.source_config import layer_windows
from llmshearing.utils.replaced import replaced

if TYPE_CHECKING:
    from llmshearing.models.cuttable import Cutter

__all__ = ['Probe', 'probe_input', 'probe_length', 'probe_masked']

SHORTEST = 48  # tokens
LONGEST = 128  # logits of more take hundreds of megabytes in a large vocabulary
BEYOND = 16  # tokens that a window hides something from


@dataclasses.dataclass(frozen=True)
class Probe:
    """Logits on :func:`probe_input`.

    Attributes:
        logits (Tensor): float32 on CPU, [1, length, vocabulary].
        computed_in (torch.dtype): Precision they were computed in.
        on_gpu (bool): Whether they were computed elsewhere than on the CPU, with sums in another order.
    """

    logits: Tensor
    computed_in: torch.dtype = torch.float32
    on_gpu: bool = False


def probe_input(vocab_size: int, length: int = SHORTEST) -> Tensor:
    """Token ids [1, length] spread over the vocabulary, always the same."""
    return (torch.arange(length) * 7919 % vocab_size)[None]


def probe_length(config: PretrainedConfig) -> int:
    """Tokens of a probe: more than fit in the config's sliding window, where that takes no long probe.

    Windows of 512 tokens and more, as most models have them, no probe reaches: which layers they hold for is then the
    config's word alone.
    """
    windows = layer_windows(config)
    length = SHORTEST if windows is None else max(SHORTEST, windows[0] + BEYOND)
    return length if length <= LONGEST else SHORTEST


def probe_masked(cutter: Cutter, masks: Mapping[str, Tensor]) -> Probe:
    """Runs a model under ``masks``, which stay installed; every rank must take part."""
    cutter.set_masks(masks)
    model, was_training = cutter.model, cutter.model.training
    model.eval()
    device = next(model.parameters()).device
    ids = probe_input(model.config.vocab_size, probe_length(model.config)).to(device)
    without_tf32 = replaced(torch.backends.cuda.matmul, 'allow_tf32', False)  # which Composer switches on for GPUs
    with torch.no_grad(), without_tf32, _own_attention(model.config):
        logits = model(ids, use_cache=False).logits
    model.train(was_training)
    reshard(model)
    return Probe(logits.float().cpu(), logits.dtype, device.type != 'cpu')


@contextlib.contextmanager
def _own_attention(config: PretrainedConfig) -> Iterator[None]:
    """PyTorch's attention in place of FlashAttention, whose kernels take half precision only."""
    before = attention_of(config)
    if before != 'flash_attention_2':
        yield
        return
    set_attention(config, attention_implementation(config))
    try:
        yield
    finally:
        set_attention(config, before)

"""The GPU's kernels for cutting, run by Triton's interpreter, against the same cut in PyTorch's operators."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('triton')

COMBINATIONS = list(itertools.product((False, True), repeat=4))


def compare(device: str) -> None:
    """Cuts matrices of more than one block in both ways.

    On a CPU it runs where TRITON_INTERPRET is set before the import; the interpreter cuts bfloat16 off instead of
    rounding it, so there one unit in its last place is let pass.
    """
    from llmshearing.models import fused_cut
    from llmshearing.models.cutting import cut_weight

    def moved(*tensors):
        return [None if tensor is None else tensor.detach().to(device) for tensor in tensors]

    generator = torch.Generator().manual_seed(0)
    for dtype, has in itertools.product((torch.float32, torch.bfloat16), COMBINATIONS):
        sizes = (41 if has[0] else 70, 277 if has[1] else 300)
        weight = torch.randn(70, 300, generator=generator).to(dtype).requires_grad_()
        rows = torch.randperm(70, generator=generator)[:41].sort().values if has[0] else None
        columns = torch.randperm(300, generator=generator)[:277].sort().values if has[1] else None
        scales = [torch.rand(size, generator=generator) if given else None for size, given in zip(sizes, has[2:])]
        leaves = [scale.requires_grad_() for scale in scales if scale is not None]
        want, grad = cut_weight(weight, rows, columns, *scales), torch.randn(sizes, generator=generator).to(dtype)
        exact = dict(rtol=0.0 if device == 'cuda' or dtype == torch.float32 else 2**-7, atol=0.0)
        arguments = moved(weight, rows, columns, *scales)
        torch.testing.assert_close(fused_cut.cut(*arguments).cpu(), want, **exact)
        if want is weight:
            continue
        wanted = torch.autograd.grad(want, [weight, *leaves], grad)
        found = fused_cut.uncut(*moved(grad), *arguments, (True, *has[2:]))
        found = [tensor.cpu() for tensor in found if tensor is not None]
        torch.testing.assert_close(found[0], wanted[0], **exact)
        for mine, theirs in zip(found[1:], wanted[1:], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_kernels_give_the_bits_of_the_operators():
    root = Path(__file__).parents[2]
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': str(root)}
    command = [sys.executable, '-c', 'from tests.models.test_fused_cut import compare; compare("cpu")']
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_kernels_on_the_gpu_give_the_bits_of_the_operators_on_the_cpu():
    compare('cuda')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_the_gpu_a_step_is_what_it_is_on_the_cpu():
    from llmshearing.models.cuttable import Cutter
    from tests.models.tiny import random_masks, tiny_model

    found = []
    for device in ('cpu', 'cuda'):
        model = tiny_model('llama').to(device)
        cutter = Cutter(model)
        cutter.set_masks(random_masks(cutter.shape, ('hidden', 'layer', 'head', 'kv_group', 'intermediate')))
        ids = torch.randint(3, 97, (2, 21), generator=torch.Generator().manual_seed(4)).to(device)
        model(ids, labels=ids).loss.backward()
        weights = [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
        found.append(torch.cat([*weights, *(g.flatten() for g in cutter.mask_gradients().values())]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)

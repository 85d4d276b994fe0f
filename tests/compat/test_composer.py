"""Canaries of compat.composer."""

from composer.trainer import _patch_pytorch
from torch.distributed.fsdp._flat_param import FlatParamHandle

from llmshearing.compat import composer


def test_install_gives_composer_the_two_names_it_uses():
    composer.install()
    composer.install()
    assert callable(_patch_pytorch.original_unshard) and callable(_patch_pytorch.unshard_with_sync)
    assert callable(FlatParamHandle.unshard)

"""What the rotation command uses of the package's other parts, in one place."""

from llmshearing.checkpoints.checkpoint import check_tensors
from llmshearing.export.model_card import TAG, copy_licence_files, source_licence
from llmshearing.export.model_folder import open_strictly
from llmshearing.export.shard_writer import ModelFolderWriter
from llmshearing.prepare.manifest import MANIFEST, parse_manifest
from llmshearing.prepare.tokenizer import plan_tokenizer
from llmshearing.reports.drawing import BLUE, DPI, GREY, ORANGE, figure_of
from llmshearing.scaling.measure import read_tokens
from llmshearing.utils.paths import check_safetensors_index, local_destination

__all__ = [
    'BLUE',
    'DPI',
    'GREY',
    'MANIFEST',
    'ModelFolderWriter',
    'ORANGE',
    'TAG',
    'check_safetensors_index',
    'check_tensors',
    'copy_licence_files',
    'figure_of',
    'local_destination',
    'open_strictly',
    'parse_manifest',
    'plan_tokenizer',
    'read_tokens',
    'source_licence',
]

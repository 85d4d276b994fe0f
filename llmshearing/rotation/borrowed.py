"""What the rotation command uses of the package's other parts, in one place."""

from llmshearing.conversion.checkpoint import check_tensors
from llmshearing.conversion.hf_export import open_strictly
from llmshearing.conversion.model_card import TAG, copy_licence_files, source_licence
from llmshearing.conversion.shard_writer import ModelFolderWriter
from llmshearing.data.prepare_manifest import MANIFEST, parse_manifest
from llmshearing.data.prepare_tokenizer import plan_tokenizer
from llmshearing.reports.drawing import BLUE, DPI, GREY, ORANGE, figure_of
from llmshearing.safe_paths import check_safetensors_index, local_destination
from llmshearing.scaling.measure import read_tokens

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

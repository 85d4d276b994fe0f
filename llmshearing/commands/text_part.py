"""``llmshearing text-part SOURCE --output FOLDER``: the text part of a multimodal model as a model of its own.

With ``--put-back DECODER``, the multimodal model with that decoder in its text part's place.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llmshearing.commands.arguments import command_parser
from llmshearing.utils.paths import local_destination

__all__ = ['main']


def main(argv: list[str]) -> int:
    """Writes the folder. Returns 0; errors of the user are raised as ValueError."""
    parser = command_parser(
        'text-part',
        'Write the text part of a multimodal model as a plain decoder, which can be planned, cut and trained.\n'
        'What sees or hears stays behind. Or put what was made of it back into the whole.',
    )
    parser.add_argument('source', metavar='SOURCE', help='model folder whose config has a text_config')
    parser.add_argument('--output', required=True, metavar='FOLDER', help='folder to write')
    parser.add_argument(
        '--put-back',
        metavar='DECODER',
        help='write the whole model instead, with this folder as its text part: an export of the same hidden size',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace FOLDER if it exists')
    arguments = parser.parse_args(argv)
    output = local_destination('--output', arguments.output)
    if arguments.put_back:
        from llmshearing.export.whole_model import write_whole_model

        whole = write_whole_model(Path(arguments.source), Path(arguments.put_back), output, arguments.overwrite)
        sys.stdout.write(
            f'{output}: a {whole.model_type} of {whole.parameters:,} parameters; {whole.replaced} tensors of its text '
            f'part are new, {whole.carried} others are as they were. On text it computes what the decoder computes '
            f'(logits within {whole.difference:.1g}){_left_out_clause(whole.left_out)}\n'
        )
        return 0
    from llmshearing.export.text_part import write_text_part

    part = write_text_part(Path(arguments.source), output, arguments.overwrite)
    sys.stdout.write(
        f'{output}: a {part.model_type} of {part.parameters:,} parameters; {part.tensors} tensors read back bit for '
        f'bit, {part.left} left behind. On text it computes what the whole computes{_left_out_clause(part.left_out)}\n'
    )
    return 0


def _left_out_clause(left_out: str) -> str:
    if not left_out:
        return ''
    return (
        f', but for {left_out}, which transformers follows for the decoder alone and not inside the whole: the '
        'likeliest tokens are the same, losses and sampling are not'
    )

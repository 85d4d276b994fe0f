"""Options of `llmshearing search` that cannot be meant."""

import pytest

from llmshearing.commands.search import main


@pytest.mark.parametrize(
    ('limit', 'message'),
    [
        (
            'hidden_size=64',
            '--limit hidden_size=64: expected LEAST:MOST. hidden_size=64: is at least, hidden_size=:64 at most; for '
            'one size alone: --pin hidden_size=64.',
        ),
        ('hidden_size=:', '--limit hidden_size=:: expected LEAST:MOST. hidden_size=SIZE: is at least'),
        ('hidden_size=4:x', '--limit hidden_size=x: expected a whole number'),
    ],
)
def test_limits_say_on_which_side_they_are(tmp_path, limit, message):
    with pytest.raises(ValueError) as error:
        main(['source', '--params', '60K', '--output', str(tmp_path / 'out'), '--limit', limit])
    assert message in str(error.value) and not (tmp_path / 'out').exists()


def test_a_count_of_tokens_that_is_none_names_its_option(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(['source', '--params', '60K', '--output', str(tmp_path / 'out'), '--tokens', 'many'])
    assert "--tokens: not a count: 'many'" in capsys.readouterr().err

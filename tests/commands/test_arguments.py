"""What commands have in common."""

from argparse import Namespace
from dataclasses import dataclass

from llmshearing.commands.arguments import parse_target, settings_from


@dataclass
class Settings:
    size: int
    name: str = 'a'
    keep: int = 7


def test_settings_are_the_options_of_their_names():
    options = Namespace(size=3, name='text', output='folder')
    assert settings_from(Settings, options) == Settings(3, 'text')
    assert settings_from(Settings, options, name='given') == Settings(3, 'given')


def test_a_target_has_the_values_that_a_yaml_would_have():
    items = ['uneven_heads=true', 'hidden_size=48', 'fraction.intermediate_size=0.5', 'params=1.3B', 'x=False']
    assert parse_target(items) == {
        'uneven_heads': True,
        'hidden_size': 48,
        'fraction': {'intermediate_size': 0.5},
        'params': '1.3B',
        'x': False,
    }

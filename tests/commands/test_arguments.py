"""What commands have in common."""

from argparse import Namespace
from dataclasses import dataclass

from llmshearing.commands.arguments import settings_from


@dataclass
class Settings:
    size: int
    name: str = 'a'
    keep: int = 7


def test_settings_are_the_options_of_their_names():
    options = Namespace(size=3, name='text', output='folder')
    assert settings_from(Settings, options) == Settings(3, 'text')
    assert settings_from(Settings, options, name='given') == Settings(3, 'given')

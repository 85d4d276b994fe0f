"""Tables in Markdown."""

from llmshearing.utils.markdown import markdown_table


def test_a_table_has_a_line_for_its_header_and_each_row():
    table = markdown_table(['', 'loss'], [['web', '2.50'], ['code', '']])
    assert table == '| | loss |\n|---|---|\n| web | 2.50 |\n| code |  |'


def test_a_table_of_no_rows_is_its_header():
    assert markdown_table(['name'], []) == '| name |\n|---|'

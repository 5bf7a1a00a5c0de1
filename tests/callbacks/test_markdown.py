"""A model's words are shown as they are, whatever they would mean as Markdown or HTML."""

from __future__ import annotations

from tensorboard.plugin_util import markdown_to_safe_html

from lit_llada.callbacks.markdown import escape, markdown_table


def test_a_table_has_a_line_for_its_head_and_for_each_row() -> None:
    assert markdown_table(["a", "b"], [["1", "2"], ["3", "4"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"
    assert markdown_table(["a"], []) == "| a |\n| --- |"


def test_markup_line_ends_and_bars_of_a_cell_are_only_text() -> None:
    words = "x | y *z* <b>w</b> `v` [u](t)\n# s_r_"
    page = markdown_to_safe_html(markdown_table(["words"], [[escape(words)]]))
    assert page.count("<td>") == 1
    assert "<td>x | y *z* &lt;b&gt;w&lt;/b&gt; `v` [u](t)↵# s_r_</td>" in page

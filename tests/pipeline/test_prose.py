"""Docstrings to prose, in the dialects that are found in the wild."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.prose import docstring_to_prose


def prose(docstring: str) -> list[str]:
    return docstring_to_prose(textwrap.dedent(docstring)).splitlines()


def test_numpy_style_keeps_the_descriptions_of_parameters():
    assert prose(
        """
        mean(a, axis=None) -> ndarray

        Compute the arithmetic mean along the specified axis.

        Parameters
        ----------
        a : array_like
            Array containing numbers whose mean is desired.
        axis : None or int, optional
            Axis along which the means are computed. The default is to
            compute the mean of the flattened array.

        Returns
        -------
        m : ndarray
            A new array containing the mean values.

        See Also
        --------
        average : Weighted average

        Notes
        -----
        The mean is the sum divided by the number of elements.

        Examples
        --------
        >>> np.mean([1, 2])
        1.5
        """
    ) == [
        "Compute the arithmetic mean along the specified axis.",
        "Array containing numbers whose mean is desired.",
        "Axis along which the means are computed. The default is to compute the mean of the "
        "flattened array.",
        "A new array containing the mean values.",
        "The mean is the sum divided by the number of elements.",
    ]


def test_google_style_keeps_the_descriptions_of_arguments():
    assert prose(
        """
        Open a file in the given mode.

        Args:
            path (str): where the file is stored
            mode: how the file is opened,
                reading by default.
            depth: int, optional
                How many directories to descend into.

        Returns:
            IO: the open file, to be closed by the caller.

        Raises:
            OSError: If the file is missing.

        Example:
            f = open_file("x")
        """
    ) == [
        "Open a file in the given mode.",
        "Where the file is stored.",
        "How the file is opened, reading by default.",
        "How many directories to descend into.",
        "The open file, to be closed by the caller.",
        "If the file is missing.",
    ]


def test_field_lists_of_rest_and_epytext_lose_names_and_types():
    assert prose(
        """
        Send a request to the server.

        :param url: the address that the request
            is sent to
        :type url: str
        :returns: the answer of the server as text
        :rtype: Response
        @param timeout: how long to wait for it
        """
    ) == [
        "Send a request to the server.",
        "The address that the request is sent to.",
        "The answer of the server as text.",
        "How long to wait for it.",
    ]


def test_code_in_every_form_is_dropped():
    assert prose(
        """
        Run the function in a thread of the pool.

        A doctest follows this paragraph of text:

        >>> pool.run(f)
        <Future at 0x1>

        Then there is a literal block::

            pool.run(f)
            pool.close()

        .. code-block:: python

            import pool

        ```python
        pool.run(f)
        ```

        After that the text goes on as before.
        """
    ) == [
        "Run the function in a thread of the pool.",
        "After that the text goes on as before.",
    ]


def test_notes_and_warnings_are_prose_and_versions_are_not():
    assert prose(
        """
        Return the size of the cache.

        .. versionadded:: 3.2
           The argument was added in this version.

        .. note:: This is slow for a large cache.

        .. warning::
            The result is not exact while others write.
        """
    ) == [
        "Return the size of the cache.",
        "This is slow for a large cache.",
        "The result is not exact while others write.",
    ]


def test_tables_and_titles_are_dropped():
    assert prose(
        """
        Title of the Module
        ===================

        The modes of this function are listed in a table.

        ====  ==========
        Mode  Meaning of the mode
        ====  ==========
        r     open it for reading
        w     open it for writing
        ====  ==========

        +------+-------+
        | a    | b     |
        +------+-------+

        The text after the tables is kept as it is.
        """
    ) == [
        "The modes of this function are listed in a table.",
        "The text after the tables is kept as it is.",
    ]


def test_the_items_of_a_list_are_sentences_of_their_own():
    assert prose(
        """
        Compare two files in one of these ways:

        - by the size of the files
        * by the time of the last change,
          which is quick
        1. by the content of both files
        """
    ) == [
        "Compare two files in one of these ways.",
        "By the size of the files.",
        "By the time of the last change, which is quick.",
        "By the content of both files.",
    ]


def test_arguments_with_dashes_as_in_the_standard_library():
    assert prose(
        """
        Find a needle in the haystack.

        needle -- the object to be found
        start -- where the search begins in it
        """
    ) == [
        "Find a needle in the haystack.",
        "The object to be found.",
        "Where the search begins in it.",
    ]


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("Return ``None`` if the `key` is missing.", "Return None if the key is missing."),
        ("This calls :meth:`~pkg.Cls.run` of the class.", "This calls run of the class."),
        ("See :func:`the docs <pkg.f>` for all of it.", "See the docs for all of it."),
        ("Use the `handbook <https://x.org>`_ for this.", "Use the handbook for this."),
        ("Read [the guide](https://x.org) before you start.", "Read the guide before you start."),
        ("It is **very** slow and *not* safe here.", "It is very slow and not safe here."),
        ("It was shown by Smith in [1]_ to be fast.", "It was shown by Smith to be fast."),
        ("It is fast (see https://x.org/y) and small.", "It is fast and small."),
        ("The <b>size</b> of the file in bytes.", "The size of the file in bytes."),
        ("Returns: the number of the open files", "The number of the open files."),
        ("All of \\*args are passed to the function.", "All of *args are passed to the function."),
        (
            "The values are a, b, ..., z in it.",
            "The values are a, b, ..., z in it.",
        ),
        (
            "The ``__doc__`` of it is not changed.",
            "The __doc__ of it is not changed.",
        ),
    ],
)
def test_inline_markup_is_taken_off(marked, plain):
    assert prose(marked) == [plain]


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        "Too short.",
        "foo(bar, baz=None) -> int",
        "x = [1, 2, 3]; y = {'a': x}; print(y[0](x))",
        "Copyright 2001 by the authors of this file, all rights reserved.",
        "Gibt die Anzahl der Elemente zurück, die gespeichert wurden.",
        "返回列表中元素的数量和它们的总和。",
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi",
    ],
)
def test_what_is_not_english_prose_is_nothing(docstring):
    assert docstring_to_prose(docstring) == ""


def test_a_sentence_around_a_formula_is_dropped_and_a_symbol_stays():
    assert prose(
        r"""
        Computes the sum of all the elements.

        It equals :math:`\sum_i x_i` for every input. The size is :math:`n` in the end.
        """
    ) == ["Computes the sum of all the elements.", "The size is n in the end."]


@pytest.mark.parametrize(
    "docstring", [":", "::", "..", "--\n--", "Args:", "a\n---", "=== ===", "|", "```"]
)
def test_fragments_of_markup_end_in_nothing(docstring):
    assert docstring_to_prose(docstring) == ""


LINES = st.sampled_from(
    [
        "Return the sum of the given numbers.",
        "Parameters",
        "----------",
        "=" * 5000,
        "=" * 50 + "x",
        "=== ===",
        ":param x: the number to be added",
        ".. note::",
        "Args:",
        "    x (int): the number",
        "    y",
        "- an item of the list::",
        ">>> f(1)",
        "```",
        "",
        "`" * 99,
        "(" * 500 + ":",
        "*" * 99 + "a",
        "| a | b |",
        "@x",
    ]
)


@given(st.lists(LINES, max_size=12).map("\n".join) | st.text(max_size=200))
def test_any_text_gives_whole_lines_or_nothing(docstring):
    text = docstring_to_prose(docstring)
    assert all(line.strip() == line and line for line in text.splitlines())
    assert "```" not in text
    assert text == "" or len(text.split()) >= 5

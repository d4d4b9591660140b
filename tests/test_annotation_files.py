"""Annotation files from anywhere: what is accepted, and that everything else is refused with its file and line."""

import json
import math

import numpy as np
import pytest

from audiation.datasets.annotation_files import (
    MAX_BYTES,
    MAX_LINES,
    SHOWN_CHARACTERS,
    AnnotationError,
    beats_of,
    identifier,
    lines_of,
    number,
    parse_json,
    read_bytes,
    read_lines,
    relative_path,
    seconds,
    segments_of,
    shown,
    table_rows,
    whole_number,
)

WHERE = "a.txt, line 3"


def refusal(function, *arguments, **options):
    with pytest.raises(AnnotationError) as caught:
        function(*arguments, **options)
    return str(caught.value)


def rows(content, columns=("id", "tag"), **options):
    return list(table_rows(content, "a.csv", columns, **({"max_lines": 100} | options)))


# Bytes and lines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
def test_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path, end, mark):
    path = tmp_path / "a.txt"
    path.write_bytes(mark + end.join([b"0.5 one", b"  ", b"", "1.0 zw\u00f6lf".encode(), b""]))
    found = read_lines(path)
    assert [line.text for line in found] == ["0.5 one", "1.0 zw\u00f6lf"]
    assert [line.where for line in found] == [f"{path}, line 1", f"{path}, line 4"]


def test_a_byte_order_mark_inside_a_file_is_a_character_of_its_line():
    assert [line.text for line in lines_of(b"a\n\xef\xbb\xbfb", "a.txt")] == ["a", "\ufeffb"]


def test_only_line_ends_end_lines():
    text = "a\u2028b\x0bc\x0cd\x85e"
    (line,) = lines_of(text.encode(), "a.txt")
    assert line.text == text and line.where == "a.txt, line 1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ntwo\n\x00\n", "a.txt, line 3: holds a NUL"),
        (b"one\r\ntwo\x00", "a.txt, line 2: holds a NUL"),
        (b"one\rtwo\r\xe9t\xe9", "a.txt, line 3: not UTF-8"),
        ("one\n".encode("utf-16"), "a.txt, line 1: not UTF-8"),
        ("one\n".encode("utf-16-le"), "a.txt, line 1: holds a NUL"),
        (b"ok\n\xed\xa0\x80", "a.txt, line 2: not UTF-8"),  # half of a surrogate pair
        (b"ok\n\xc0\xaf", "a.txt, line 2: not UTF-8"),  # an overlong '/'
    ],
)
def test_what_is_not_text_is_refused_with_file_and_line(content, message):
    assert refusal(lines_of, content, "a.txt").startswith(message)


def test_a_file_has_no_more_lines_than_allowed():
    assert len(lines_of(b"x\n" * MAX_LINES, "a.txt")) == MAX_LINES
    expected = f"a.txt, line {MAX_LINES + 1}: more than {MAX_LINES} lines"
    assert refusal(lines_of, b"x\n" * 1_000_000, "a.txt") == expected
    assert refusal(lines_of, b"\n" * 1_000_000, "a.txt") == expected  # blank ones cost memory too
    assert refusal(lines_of, b"x\n" * MAX_LINES + b"x", "a.txt") == expected  # without an end
    assert refusal(lines_of, b"a\nb\nc", "a.txt", max_lines=2) == "a.txt, line 3: more than 2 lines"


def test_a_file_has_no_more_bytes_than_allowed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * MAX_BYTES)
    assert len(read_bytes(path)) == MAX_BYTES
    path.write_bytes(b"x" * (MAX_BYTES + 1))
    for read in (read_bytes, read_lines):
        assert refusal(read, path).startswith(f"{path}: longer than the {MAX_BYTES} bytes")
    assert refusal(read_bytes, path, 10) == f"{path}: longer than the 10 bytes that such a file may have"
    with pytest.raises(FileNotFoundError):
        read_lines(tmp_path / "b.txt")


# Numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1.0), ("-1.5", -1.5), ("+.5", 0.5), ("5.", 5.0), (" 2e3\t", 2000.0), ("1E-3", 0.001), ("007", 7.0),
     ("0" * 300 + "1", 1.0), ("1e-400", 0.0), ("-0", 0.0)],
)  # fmt: skip
def test_decimal_numbers(text, value):
    assert number(text, WHERE) == value


NO_NUMBERS = (
    "", " ", ".", "-", "e5", "1e", "1e+", "nan", "NaN", "inf", "-Infinity", "1e999", "1e9999", "0x1F", "0x1p3", "1_000",
    "1,5", "1 2", "1.2.3", "--1", "1-", "\u0661", "\uff11", "\u00bd", "1\u00a0x", "True", "1j", "1\n2", "0b1", "$1",
)  # fmt: skip


@pytest.mark.parametrize("text", NO_NUMBERS, ids=ascii)
def test_what_is_no_decimal_number_is_refused(text):
    assert refusal(number, text, WHERE) == f"{WHERE}: a number was expected, got {shown(text)}"
    assert refusal(seconds, text, WHERE).startswith(f"{WHERE}: a number from 0 to 86400 was expected, got ")
    message = refusal(whole_number, text, WHERE, at_least=0, at_most=9)
    assert message.startswith(f"{WHERE}: a number from 0 to 9 was expected, got ")


@pytest.mark.parametrize("tail", ["x", ".x", "e", "e1234", "_1"])
def test_a_line_of_a_million_digits_is_refused_in_one_pass(tail):
    """A pattern that tries every way to divide the digits would take hours."""
    message = refusal(number, "1" * 1_000_000 + tail, WHERE)
    assert message == f"{WHERE}: a number was expected, got '{'1' * SHOWN_CHARACTERS}'..."


def test_a_number_beyond_what_a_float_holds_is_refused():
    assert refusal(number, "9" * 1000, WHERE).startswith(f"{WHERE}: a number was expected")
    assert refusal(whole_number, "9" * 1000, WHERE, at_least=0, at_most=9).startswith(
        f"{WHERE}: a number from"
    )


def test_bounds_of_numbers_belong_to_them():
    assert [number(t, WHERE, at_least=-1.0, at_most=2.0) for t in ("-1", "2.0")] == [-1.0, 2.0]
    for text in ("-1.0001", "2.0001", "1e300"):
        message = refusal(number, text, WHERE, at_least=-1.0, at_most=2.0)
        assert message == f"{WHERE}: a number from -1 to 2 was expected, got '{text}'"
    assert (
        refusal(number, "-3", WHERE, at_least=0.0)
        == f"{WHERE}: a number from 0 to inf was expected, got '-3'"
    )
    assert [seconds(t, WHERE) for t in ("0", "86400")] == [0.0, 86_400.0]
    for text in ("-0.001", "86400.1"):
        assert refusal(seconds, text, WHERE).startswith(f"{WHERE}: a number from 0 to 86400")


def test_whole_numbers():
    assert [whole_number(t, WHERE, at_least=0, at_most=20) for t in ("3", "3.0", "2e1", " 0 ")] == [
        3,
        3,
        20,
        0,
    ]
    assert type(whole_number("3.0", WHERE, at_least=0, at_most=20)) is int
    assert refusal(whole_number, "3.5", WHERE, at_least=0, at_most=20) == (
        f"{WHERE}: a whole number was expected, got '3.5'"
    )
    for text in ("-1", "21"):
        assert "a number from 0 to 20" in refusal(whole_number, text, WHERE, at_least=0, at_most=20)


# Names and paths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "..", "../a", "a/..", "a/../b", "/etc/passwd", "//host/a", "a//b", "a/", "./a", "a/./b", "C:/a", "a\\..\\b",
     "a\nb", "a\x00b", "a\x7fb", "a\tb", "\x1b[31m", "file:a"],
    ids=ascii,
)  # fmt: skip
def test_paths_that_leave_their_folder_are_refused(text):
    assert refusal(relative_path, text, WHERE) == (
        f"{WHERE}: {shown(text)} is not a path inside the data set's folder"
    )


@pytest.mark.parametrize(
    "text", ["a.mp3", "a/b.mp3", "..a/b..", "mr._x-a,b-01-t-0-29.mp3", "zw\u00f6lf/a b.wav"]
)
def test_paths_inside_their_folder(text, tmp_path):
    assert relative_path(text, WHERE) == text
    assert (tmp_path / text).resolve().is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize("text", ["", "ab\n", "a/b", "..", "a b", "\u0430b", "ab\x00", "A" * 9])
def test_names_match_their_pattern_from_end_to_end(text):
    assert identifier("ab12", WHERE, r"[a-zA-Z0-9]{1,8}") == "ab12"
    assert refusal(identifier, text, WHERE, r"[a-zA-Z0-9]{1,8}") == (
        f"{WHERE}: {shown(text)} is not a name of this data set (expected [a-zA-Z0-9]{{1,8}})"
    )


def test_names_are_ascii_whatever_the_pattern_says():
    assert refusal(identifier, "\u0661", WHERE, r"\d+").startswith(WHERE)


def test_what_is_shown_is_short_and_cannot_command_a_terminal():
    assert shown("a\x1b[31m\n\u202e") == r"'a\x1b[31m\n\u202e'"
    assert shown("x" * 10_000) == f"'{'x' * SHOWN_CHARACTERS}'..."


# Beats and segments ----------------------------------------------------------------------------------------


def test_beats_and_segments_of_rows():
    beats = beats_of([(0.5, 1, "l1"), (1.0, 2, "l2")])
    assert beats.times_seconds.tolist() == [0.5, 1.0] and beats.positions.tolist() == [1, 2]
    segments = segments_of([(0.0, 1.0, "A", "l1"), (1.5, 2.0, "B", "l2")])
    assert segments.intervals_seconds.tolist() == [[0.0, 1.0], [1.5, 2.0]] and segments.labels == ("A", "B")
    assert len(beats_of([]).times_seconds) == 0 and segments_of([]).labels == ()


@pytest.mark.parametrize("second", [0.5, 0.25])
def test_beats_that_do_not_increase_are_refused(second):
    assert refusal(beats_of, [(0.5, 1, "l1"), (second, 2, "l2")]) == (
        f"l2: beat times must increase, got {second:g} s after 0.5 s"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((1.0, 1.0, "B", "l2"), "l2: a segment must end after it starts, got 1 s to 1 s"),
        ((2.0, 1.0, "B", "l2"), "l2: a segment must end after it starts, got 2 s to 1 s"),
        ((0.5, 2.0, "B", "l2"), "l2: starts at 0.5 s, before the one above it ends (1 s)"),
    ],
)
def test_segments_without_length_or_order_are_refused(row, message):
    assert refusal(segments_of, [(0.0, 1.0, "A", "l1"), row]) == message


# Tables ----------------------------------------------------------------------------------------------------


def test_a_table_by_the_names_of_its_columns():
    content = b'\xef\xbb\xbfid, tag ,more\r\n1,"a, ""b""", x \r\n\r\n2,,\r\n'
    assert rows(content) == [
        ({"id": "1", "tag": 'a, "b"', "more": "x"}, "a.csv, line 2"),
        ({"id": "2", "tag": "", "more": ""}, "a.csv, line 4"),
    ]
    assert rows(b'"id"\t"tag"\n"1"\t"a\'s"\n', delimiter="\t") == [
        ({"id": "1", "tag": "a's"}, "a.csv, line 2")
    ]
    assert rows(b"id,tag\n") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.csv: empty; a header with id, tag was expected"),
        (b"\n \r\n", "a.csv: empty; a header with id, tag was expected"),
        (b"\nid\n1\n", "a.csv, line 2: a header with each of id, tag was expected, got 'id'"),
        (b"id,tag,tag\n1,2,3\n", "a.csv, line 1: a header with each of id, tag"),
        (b"id,tag,x, x\n1,2,3,4\n", "a.csv, line 1: a header with each of id, tag"),
        (b"ID,tag\n1,2\n", "a.csv, line 1: a header with each of id, tag"),
        (b"id,tag\n1,2\n1\n", "a.csv, line 3: 2 cells were expected, got 1"),
        (b"id,tag\n1,2,3\n", "a.csv, line 2: 2 cells were expected, got 3"),
        (b'id,tag\n1,"two\nlines"\n', "a.csv, line 2: not a row of quoted or plain cells"),
        (b'id,tag\n1,"two\rlines"\n', "a.csv, line 2: not a row of quoted or plain cells"),
        (b'id,tag\n1,"a"b\n', "a.csv, line 2: not a row of quoted or plain cells"),
        (b"id,tag\n1," + b"x" * 200_000, "a.csv, line 2: not a row of quoted or plain cells"),
        (b"id,tag\n1,\x00\n", "a.csv, line 2: holds a NUL"),
        (b"id,tag\n1,\xff\n", "a.csv, line 2: not UTF-8"),
        (b"id,tag\n" + b"1,2\n" * 1000, "a.csv, line 101: more than 100 lines"),
    ],
)
def test_what_is_no_such_table_is_refused_with_file_and_line(content, message):
    assert refusal(rows, content).startswith(message)


# JSON ------------------------------------------------------------------------------------------------------


def test_json_of_any_kind():
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 2.5, null, "\\u0041"]}', "a.json") == {"a": [1, 2.5, None, "A"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.json, line 1: not JSON"),
        (b'{"a": 1,\n"b": }', "a.json, line 2: not JSON"),
        (b'{"a": 1}\n{"a": 2}', "a.json, line 2: not JSON"),
        (b"{'a': 1}", "a.json, line 1: not JSON"),
        (b'{"a": "\x00"}', "a.json, line 1: not JSON"),
        (b'{"a": 1,\n"b": NaN}', "a.json, line 2: NaN is not a number that JSON has"),
        (b'[1,\n\n-Infinity]', "a.json, line 3: -Infinity is not a number that JSON has"),
        (b'[\n"\xff"]', "a.json, line 2: not UTF-8 text"),
        (json.dumps([1]).encode("utf-16"), "a.json, line 1: not UTF-8 text"),
        (b"[" * 1_000_000, "a.json: nested too deeply"),
        (b'{"a":' * 1_000_000, "a.json: nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "a.json: "),
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused_with_file_and_line(content, message):
    assert refusal(parse_json, content, "a.json").startswith(message)


@pytest.mark.parametrize("text", ["1e999", "-1e400", "9" * 400 + ".0"])
def test_json_numbers_that_no_float_holds_are_refused(text):
    """Python reads them as infinity, which is as little a time as the constant of that name."""
    assert refusal(parse_json, f'{{"a": 1,\n"b": {text}}}'.encode(), "a.json").startswith("a.json")


def test_everything_that_was_read_is_finite():
    values = parse_json(b"[0.0, 1e308, -5]", "a.json")
    assert all(math.isfinite(v) for v in values) and np.isfinite(values).all()

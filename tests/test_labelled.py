"""Labelled audio of a user's own: what is read, how it is split, and that everything else is refused with its line."""

import json
import os
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import soundfile
import torch

from audiation.annotations import Key, Label, Tags, Values
from audiation.datasets import DATASETS, Skipped
from audiation.datasets.labelled import LabelError, read_labelled
from audiation.targets import ClassTarget, KeyTarget, TagsTarget, ValuesTarget
from audiation.tasks import TASKS
from audiation.tasks.labelled import labelled_task

PAGE = Path(__file__).parent.parent / "docs" / "datasets" / "labelled.md"
_ERRORS = PAGE.read_text(encoding="utf-8").partition("## Errors")[2].splitlines()
DOCUMENTED = [line.split("|")[1].strip().split("...") for line in _ERRORS if line.startswith("| ")][1:]
SPLITS = ("train", "valid", "test")


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def is_documented(message):
    """A row of the page's table of errors is about this one."""
    return any(all(part in message for part in parts) for parts in DOCUMENTED)


def csv_file(folder, *rows, name="labels.csv"):
    (folder / name).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return folder / name


def jsonl_file(folder, *records, name="labels.jsonl"):
    return csv_file(folder, *(r if isinstance(r, str) else json.dumps(r) for r in records), name=name)


def many(folder, labels, groups=None, columns="path,label"):
    """A CSV file with a recording per label, all there."""
    names = [f"{i:04d}.wav" for i in range(len(labels))]
    touch(folder, *names)
    tails = [f"{label}" + (f",{groups[i]}" if groups else "") for i, label in enumerate(labels)]
    rows = [f"{name},{tail}" for name, tail in zip(names, tails, strict=True)]
    return csv_file(folder, columns + (",group" if groups else ""), *rows)


def annotations(data):
    return {t.track_id: t.annotation for t in data.tracks}


def splits(data):
    return {t.track_id: t.split for t in data.tracks}


# What is read ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    touch(tmp_path, *(f"{name}.wav" for name in "abcdef"))
    return tmp_path


SIX = tuple(zip("abcdef", ("train", "train", "Training", "VAL", "dev", "evaluation"), strict=True))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("kind", "values", "csv_values", "expected", "names"),
    [
        (
            "class",
            ["x", "y", "x", "y", " x ", "x"],
            None,
            [Label(n) for n in "xyxyxx"],
            ("x", "y"),
        ),
        (
            "tags",
            [["a", "b"], [], ["b"], ["b"], ["a"], []],
            ["a | b", "", "b", "b", "a", ""],
            [
                Tags({"a": float(a), "b": float(b)})
                for a, b in ((1, 1), (0, 0), (0, 1), (0, 1), (1, 0), (0, 0))
            ],
            ("a", "b"),
        ),
        (
            "regression",
            [1, 2.5, -3e2, 0, 4, 4],
            None,
            [Values({"value": v}) for v in (1, 2.5, -300, 0, 4, 4)],
            ("value",),
        ),
        (
            "key",
            ["C# minor", "Db minor", "b MAJOR", "B major", "B major", "F major"],
            None,
            [
                Key(1, "minor"),
                Key(1, "minor"),
                Key(11, "major"),
                Key(11, "major"),
                Key(11, "major"),
                Key(5, "major"),
            ],
            tuple(str(Key.from_index(i)) for i in range(24)),
        ),
    ],
    ids=["class", "tags", "regression", "key"],
)
def test_every_kind_from_csv_and_jsonl(folder, form, kind, values, csv_values, expected, names):
    column = {"class": "label", "tags": "labels", "regression": "value", "key": "key"}[kind]
    if form == "csv":
        rows = [f"{n}.wav,{v},{s}" for (n, s), v in zip(SIX, csv_values or values, strict=True)]
        path = csv_file(folder, f"path,{column},split", *rows)
    else:
        path = jsonl_file(
            folder,
            *({"path": f"{n}.wav", column: v, "split": s} for (n, s), v in zip(SIX, values, strict=True)),
        )
    data = read_labelled(path)
    assert data.kind == kind and data.names == names and data.skipped == ()
    assert annotations(data) == dict(zip((f"{n}.wav" for n in "abcdef"), expected, strict=True))
    assert list(splits(data).values()) == ["train", "train", "train", "valid", "valid", "test"]
    assert data.counts == {"train": 3, "valid": 2, "test": 1}
    assert [t.line for t in data.tracks] == [n + (form == "csv") for n in range(1, 7)]
    assert data.tracks[0].audio_path == folder / "a.wav"
    assert len({hash(t) for t in data.tracks}) == 6
    assert read_labelled(path, kind).split_hash == data.split_hash
    data.check_groups()
    assert data.verify() == []


def test_several_numbers_keep_the_order_of_their_columns(folder):
    rows = [f"{n}.wav,{i},{i * i}" for i, n in enumerate("abcdef")]
    data = read_labelled(csv_file(folder, "path,value:valence,value:arousal", *rows))
    assert data.names == ("valence", "arousal")
    assert annotations(data)["d.wav"] == Values({"valence": 3.0, "arousal": 9.0})
    assert data.counts == {"train": 2, "valid": 2, "test": 2}


CONTENT = 'path,label,group\na.wav,x,"1, 2"\nb.wav,x,\nc.wav,x,"say ""3"""\nd.wav,y,\ne.wav,y,\nf.wav,y,\n'


@pytest.mark.parametrize(
    "content",
    [
        CONTENT.encode(),
        b"\xef\xbb\xbf" + CONTENT.encode(),
        CONTENT.replace("\n", "\r\n").encode(),
        CONTENT.replace("\n", "\r").encode(),
        CONTENT.rstrip("\n").encode(),
        (CONTENT + "\n \n\n").encode(),
        CONTENT.replace("label", '"label"').replace("b.wav,x", "b.wav, x ").encode(),
    ],
)
def test_forms_of_csv_that_say_the_same(folder, content):
    (folder / "labels.CSV").write_bytes(content)
    data = read_labelled(folder / "labels.CSV")
    assert data.names == ("x", "y") and [t.group for t in data.tracks][:3] == ["1, 2", "", 'say "3"']
    assert data.counts == {"train": 2, "valid": 2, "test": 2}
    assert data.split_hash == read_labelled(csv_file(folder, CONTENT)).split_hash


def test_jsonl_may_leave_out_group_and_end_in_blank_lines(folder):
    records = [{"path": f"{n}.wav", "label": "xy"[i % 2]} for i, n in enumerate("abcdef")]
    records[3]["group"] = "g"
    path = jsonl_file(folder, "\ufeff" + json.dumps(records[0]), *records[1:], "", " \r")
    assert [t.group for t in read_labelled(path).tracks] == ["", "", "", "g", "", ""]


def test_unicode_labels_and_paths(tmp_path):
    names = [f"Дорожка {i} ☂.wav" for i in range(6)]
    touch(tmp_path, *names)
    rows = [f"{name},{('été', '夏')[i % 2]}" for i, name in enumerate(names)]
    data = read_labelled(csv_file(tmp_path, "path,label", *rows))
    assert data.names == ("été", "夏") and [t.track_id for t in data.tracks] == names


def test_the_kind_argument_settles_what_columns_leave_open(folder):
    rows = [f"{n}.wav,{'xy'[i % 2]},{i}" for i, n in enumerate("abcdef")]
    path = csv_file(folder, "path,label,value", *rows)
    assert read_labelled(path, "class").names == ("x", "y")
    assert read_labelled(path, "regression").names == ("value",)
    assert read_labelled(path, ignore_columns=["value"]).kind == "class"


def test_ignored_columns_are_not_read_even_if_they_have_a_meaning(folder):
    rows = [f"{n}.wav,{'xy'[i % 2]},nonsense,{i}" for i, n in enumerate("abcdef")]
    path = csv_file(folder, "path,label,split,", *rows)
    data = read_labelled(path, ignore_columns=["split", ""])
    assert data.counts == {"train": 2, "valid": 2, "test": 2}


# Paths -----------------------------------------------------------------------------------------------------


def test_paths_begin_at_the_file_or_at_the_audio_root_and_ids_are_relative(tmp_path):
    touch(tmp_path / "audio", *"abcd")
    touch(tmp_path / "elsewhere", *"ef")
    inside, outside = tmp_path / "audio", tmp_path / "elsewhere"
    paths = ["a", "./b", "x/../c", inside / "d", outside / "e", outside / "f"]
    (tmp_path / "tables").mkdir()
    path = csv_file(tmp_path / "tables", "path,label", *(f"{p},{'xy'[i % 2]}" for i, p in enumerate(paths)))
    data = read_labelled(path, audio_root=inside)
    assert set(annotations(data)) == {"a", "b", "c", "d", str(outside / "e"), str(outside / "f")}
    assert data.skipped == () and all(t.audio_path.is_file() for t in data.tracks)
    with pytest.raises(
        LabelError, match=r"line 4 \('x/\.\./\.\./c'\)\. Write an absolute path, or set audio_root"
    ):
        read_labelled(csv_file(tmp_path / "tables", "path,label", "a,x", "b,y", "x/../../c,x"))
    with pytest.raises(FileNotFoundError, match=r"audio_root .*nowhere is not a folder"):
        read_labelled(path, audio_root=tmp_path / "nowhere")


def test_a_way_up_behind_a_link_is_not_followed(tmp_path):
    """`link/../x` leads out of the root if the system follows it, and to the root's own x by name."""
    touch(tmp_path / "secret", "deep/y", "x")
    touch(tmp_path / "root", *"abcde")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret" / "deep")
    rows = [f"{n},{'xy'[i % 2]}" for i, n in enumerate("abcde")]
    data = read_labelled(csv_file(tmp_path / "root", "path,label", *rows, "link/../x,y"))
    assert [s.track_id for s in data.skipped] == ["x"]


def test_files_that_are_not_there_are_skipped_with_reason_and_split(folder):
    touch(folder, "folder/x")
    (folder / "broken.wav").symlink_to(folder / "nowhere")
    (folder / "loop.wav").symlink_to("loop.wav")
    given = csv_file(
        folder,
        "path,label,split",
        "a.wav,x,train",
        "b.wav,y,train",
        "c.wav,x,valid",
        "d.wav,y,valid",
        "gone.wav,x,test",
        "e.wav,x,test",
        "folder,y,train",
        "broken.wav,y,dev",
        "loop.wav,z,train",
        f"{'n' * 300}.wav,y,test",
    )
    data = read_labelled(given)
    assert data.counts == {"train": 2, "valid": 2, "test": 1}
    assert data.skipped[0] == Skipped("gone.wav", f"{folder / 'gone.wav'} is not there", "test")
    assert [s.split for s in data.skipped] == ["test", "train", "valid", "train", "test"]
    assert data.skipped[1].reason.endswith("folder is not a file")
    assert data.skipped[2].reason.endswith("broken.wav is not there")
    assert data.skipped[3].reason.endswith("loop.wav cannot be used (Too many levels of symbolic links)")
    assert data.skipped[4].reason.endswith(".wav cannot be used (File name too long)")
    assert "No file can be used of: z." in data.warnings
    assert data.report()[-3].startswith("5 listed recordings are left out: ")
    made = read_labelled(
        csv_file(folder, "path,label", *(f"{n}.wav,{m}" for n, m in zip("abcdefg", "xxxyyyy", strict=True)))
    )
    assert made.skipped == (Skipped("g.wav", f"{folder / 'g.wav'} is not there", ""),)


def test_a_long_list_of_missing_files_is_counted(tmp_path):
    touch(tmp_path, *(f"{i}.wav" for i in range(6)))
    path = csv_file(tmp_path, "path,label", *(f"{i}.wav,{'xy'[i % 2]}" for i in range(20_000)))
    data = read_labelled(path)
    assert len(data.tracks) == 6 and len(data.skipped) == 19_994


# What is refused -------------------------------------------------------------------------------------------

ROWS = "a.wav,x\nb.wav,y\n"
GIVEN = "path,label,split\na.wav,x,train\nb.wav,y,train\n"
REFUSED = [
    (b"\xff\xfep\0a\0", "line 1: this is UTF-16. Save the file as plain text in UTF-8."),
    ("path,label\na.wav,x\nb.wav,été\n".encode("latin-1"), "line 3: the text is not UTF-8"),
    (b"path,label\ra.wav,x\rb\0.wav,y\r", "line 3: a NUL character"),
    ("", "no recording is listed"),
    ("\n\n", "no recording is listed"),
    ("path,label\n", "no recording is listed"),
    ("path;label\na.wav;x\n", "line 1: fields are separated by commas, not by ';'"),
    ('path,label\na.wav,x\nb.wav,"y\n\n', "line 3: not CSV: unexpected end of data"),
    ('path,label\na.wav,"x"y\n', "line 2: not CSV"),
    (f"path,label\na.wav,{'x' * 140_000}\n", "line 2: not CSV: field larger than field limit"),
    ("path,label\na.wav,x\nb.wav\nc.wav,y,z\n", "not 2 fields as in the first line: line 3 (1), line 4 (3)."),
    ("path,label\na.wav,x\n\nb.wav,y\n", "a blank line: line 3."),
    ("\npath,label\na.wav,x\n", "a blank line: line 1."),
    ("path,label,label\na.wav,x,y\n", "line 1: the column 'label' is there twice. Rename one."),
    ("path,lable\na.wav,x\n", "unknown column 'lable'. Did you mean 'label'?"),
    ("path,label,\na.wav,x,1\n", "unknown column ''. Columns are path, split, group, label, labels"),
    ("Path,label\na.wav,x\n", "unknown column 'Path'. Did you mean 'path'?"),
    ("label\nx\n", "there is no column 'path' with the audio files. Columns: label."),
    ("path,split\na.wav,train\n", "no column with labels. Name one label, labels, value"),
    ("path,label,key\na.wav,x,C major\n", "columns of several kinds (class, key). Say which with kind."),
    ("path,value,value:x\na.wav,1,2\n", "not in value, value:x"),
    ("path,value:\na.wav,1\n", "not in value:"),
    (f"path,label\n,x\n{ROWS} ,x\n", "no path: line 2, line 5. Every row names an audio file."),
    (
        'path,label\na\x07.wav,x\n"b\n.wav",y\n',
        "a control character in 'path': line 2 ('a\\x07.wav'), line 3",
    ),
    ('path,label\na.wav,"x\ny"\nb.wav,y\x1b[0m\n', "in 'label': line 2 ('x\\ny'), line 4"),
    ("path,labels\na.wav,x|y\u2028z\n", "in 'labels': line 2."),
    ("path,label\n../a.wav,x\n", "data folder: line 2 ('../a.wav')"),
    (
        "path,label,split\na.wav,x,train\nb.wav,y,holdout\n",
        "an unknown split: line 3 ('holdout'). A split is one of train, valid, test.",
    ),
    (
        "path,label\n" + "a.wav,\n" * 7,
        "no label: line 2, line 3, line 4, line 5, line 6 and 2 more. Every row",
    ),
    ("path,value\na.wav, \nb.wav,1\n", "no label: line 2."),
    ("path,key\na.wav,C major\nb.wav,H dur\n", "not a key: line 3 ('H dur'). Write '<tonic> major'"),
    ("path,labels\na.wav,x||y\nb.wav,x|x\n", "tag: line 2 ('x||y'), line 3 ('x|x')."),
    (
        'path,value\na.wav,1_0\nb.wav,one\nc.wav,"3,5"\nd.wav,٣\n',
        "not a number: line 2 ('1_0'), line 3 ('one'), line 4 ('3,5'), line 5 ('٣').",
    ),
    (
        "path,value\na.wav,nan\nb.wav,-inf\nc.wav,1e999\nd.wav,1\n",
        "not a finite number: line 2 ('nan'), line 3 ('-inf'), line 4 ('1e999').",
    ),
    (
        "path,value,split\na.wav,1e200,train\nb.wav,0,train\nc.wav,1,dev\nd.wav,2,dev\n",
        "numbers too large to learn: 'value'",
    ),
    (
        "path,label\na.wav,x\nb.wav,y\n./a.wav,x\n",
        "the same file twice: line 2 and line 4. It would count double",
    ),
    ("path,label\na.wav,x\nb.wav,y\na.wav,y\n", "the same file with two labels: line 2 and line 4."),
    ("path,value\na.wav,1\na.wav,2\n", "the same file with two labels: line 2 and line 3."),
    (GIVEN + "a.wav,x,test\n", "the same file in two splits: line 2 and line 4."),
    (GIVEN + "c.wav,x,\nd.wav,x,\n", "no split, while others have one: line 4, line 5. Give all"),
    (
        "path,label,split,group\na.wav,x,train,g\nb.wav,y,train,\nc.wav,x,valid,g\nd.wav,y,valid,g\n",
        "a group in two splits: 'g' (line 2: train, line 4: valid). Rec",
    ),
    ("path,label\nm.wav,x\nn.wav,y\n", "none of the 2 audio files can be used: "),
    (GIVEN + "m.wav,x,valid\n", "no file of the split valid can be used: "),
    ("path,label,split\na.wav,x,valid\nb.wav,y,test\n", "training split, only in test, valid"),
    (
        f"path,label\n{ROWS}",
        "2 recordings are too few to make train, valid, test: valid would have 0 recordings. "
        "At least 3 recordings of one class are needed",
    ),
    (
        "path,value\n" + "".join(f"{n}.wav,{i}\n" for i, n in enumerate("abcde")),
        "test would have 1 recordings. At least 6 recordings are needed",
    ),
    ("path,label,group\na.wav,x,1\nb.wav,y,1\nc.wav,x,2\nd.wav,y,2\n", "2 groups are too few"),
    ("path,label,split\na.wav,x,train\nb.wav,y,valid\n", "training has 1 recording; at least 2 are needed."),
    ("path,label\na.wav,x\nb.wav,x\nc.wav,x\n", "all recordings are 'x'. At least two classes are needed."),
    (
        "path,key,split\na.wav,C major,train\nb.wav,C major,train\nc.wav,D major,dev\n",
        "all training recordings are 'C major'.",
    ),
    (
        GIVEN + "c.wav,z,valid\nd.wav,z,test\ne.wav,x,valid\n",
        "training lacks a class of valid or test: 'z' (line 4: ",
    ),
    (
        "path,labels,split\na.wav,x,train\nb.wav,x,train\nc.wav,y,dev\n",
        "no tag tells the training recordings apart",
    ),
    ("path,labels\na.wav,\nb.wav,\nc.wav,\n", "no tag tells the recordings apart"),
    (
        "path,labels,split\na.wav,x,train\nb.wav,,train\nc.wav,,dev\n",
        "no recording of the split valid has a tag",
    ),
    (
        "path,value:p,value:q,split\na.wav,1,2,train\nb.wav,1,3,train\nc.wav,2,4,dev\nd.wav,2,3,dev\n",
        "the same number in all of training: 'p' is 1.",
    ),
    (
        "path,value,split\na.wav,1,train\nb.wav,2,train\nc.wav,3,dev\n",
        "too few recordings to validate numbers on: 1.",
    ),
]


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_what_is_refused_says_file_line_and_cure_and_is_documented(folder, content, message):
    path = folder / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LabelError) as caught:
        read_labelled(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and message in text
    assert is_documented(text)


REFUSED_JSON = [
    (
        ['{"path": "a.wav", "label": "x"', "[1]", "null"],
        "not a JSON object: line 1 (Expecting ',' delimiter, column 31), line 2 (a list), line 3 (a NoneType). "
        "A line is like",
    ),
    (
        ['{"path": "a.wav", "path": "b.wav", "label": "x"}'],
        "not a JSON object: line 1 (a name is there twice)",
    ),
    (
        ['{"path": "a.wav", "value": NaN}', '{"path": "a.wav", "value": -Infinity}'],
        "line 1 (NaN is not a finite number), line 2 (-Infinity is not",
    ),
    (["[" * 100_000], "not a JSON object: line 1 (too deep)"),
    (
        ['{"path": "a.wav", "value": 1e999}', '{"path": "b.wav", "value": 1' + "0" * 400 + "}"],
        "not a finite number: line 1 (inf), line 2 (1000",
    ),
    (
        [
            '{"path": "a.wav", "value": "1"}',
            '{"path": "b.wav", "value": true}',
            '{"path": "c.wav", "value": [1]}',
        ],
        "not a number: line 1 ('1'), line 2 (True), line 3 ([1])",
    ),
    (['{"path": "a.wav", "value": null}', '{"path": "b.wav"}'], "no label: line 1, line 2."),
    (
        ['{"path": "a.wav", "label": 3}', '{"path": ["b.wav"], "label": "x"}'],
        "'label' is not a text: line 1 (3). Put it into double quotes.",
    ),
    (['{"path": "a.wav", "label": "x", "group": 1}'], "'group' is not a text: line 1 (1)."),
    (
        ['{"path": "a.wav", "labels": "x"}', '{"path": "b.wav", "labels": [1]}'],
        "'labels' is not a list of texts: line 1 ('x'), line 2 ([1]).",
    ),
    (['{"path": "a.wav", "labels": [" "]}', '{"path": "b.wav"}'], "an empty or repeated tag: line 1 ('')."),
    (['{"path": "a\\ud800.wav", "label": "x"}'], "a control character in 'path': line 1 ('a\\ud800.wav')"),
    (['{"path": "a\\u0000.wav", "label": "x"}'], "a control character in 'path': line 1 ('a\\x00.wav')"),
    (['{"path": "a.wav", "label": "x"}', '{"path": "b.wav", "labels": ["x"]}'], "unknown column 'labels'"),
    (['{"path": "a.wav", "label": "x"}', "", '{"path": "b.wav", "label": "x"}'], "a blank line: line 2."),
    (["{}"], "there is no column 'path'"),
]


@pytest.mark.parametrize(("lines", "message"), REFUSED_JSON)
def test_what_is_refused_in_jsonl(folder, lines, message):
    path = jsonl_file(folder, *lines)
    with pytest.raises(LabelError) as caught:
        read_labelled(path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert is_documented(str(caught.value))


def test_faults_of_all_sorts_are_told_at_once(folder):
    path = csv_file(folder, "path,label", "a.wav,", "../b.wav,x", "c.wav")
    with pytest.raises(LabelError) as caught:
        read_labelled(path)
    assert len(str(caught.value).splitlines()) == 3


def test_arguments_that_do_not_fit_are_refused(folder):
    path = csv_file(folder, "path,label,x", "a.wav,x,1", "b.wav,y,2")
    for message, arguments in (
        ("kind is one of class, tags, regression, key, got 'genre'", {"kind": "genre"}),
        ("kind 'tags' needs a column 'labels'", {"kind": "tags", "ignore_columns": ["x"]}),
        ("there is no column 'y' to ignore", {"ignore_columns": ["x", "y"]}),
        ("there is no column 'path'", {"ignore_columns": ["x", "path"]}),
    ):
        with pytest.raises(LabelError, match=message) as caught:
            read_labelled(path, **arguments)
        assert is_documented(str(caught.value))
    assert len(DOCUMENTED) > 50
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv is neither a file nor a folder"):
        read_labelled(folder / "nowhere.csv")
    with pytest.raises(LabelError, match=r"a\.wav is not a \.csv or \.jsonl file"):
        read_labelled(folder / "a.wav")


def test_one_file_under_two_names_is_found_behind_links(folder):
    (folder / "link.wav").symlink_to("a.wav")
    (folder / "also").symlink_to(folder)
    rows = ["a.wav,x", "b.wav,y", "link.wav,x", "also/b.wav,y", f"{folder / 'b.wav'},y"]
    with pytest.raises(LabelError, match="twice: line 2 and line 4, line 3 and line 5, line 3 and line 6"):
        read_labelled(csv_file(folder, "path,label", *rows))


# Splits ----------------------------------------------------------------------------------------------------


def test_made_splits_are_70_15_15_in_every_class(tmp_path):
    data = read_labelled(many(tmp_path, ["x"] * 100 + ["y"] * 40 + ["z"] * 3 + ["w"] * 2 + ["v"]))
    counted = Counter((t.annotation.name, t.split) for t in data.tracks)
    assert [counted["x", s] for s in SPLITS] == [70, 15, 15]
    assert [counted["y", s] for s in SPLITS] == [28, 6, 6]
    assert [counted["z", s] for s in SPLITS] == [1, 1, 1]
    assert counted["w", "train"] == counted["v", "train"] == 1
    assert data.how_split == "split 70/15/15 by recording, seed 0"


def test_made_splits_depend_on_seed_and_ids_and_not_on_the_order_of_rows(tmp_path):
    generator = random.Random(0)
    labels = [generator.choice("xxxyyz") for _ in range(60)]
    path = many(tmp_path, labels, [generator.randrange(20) for _ in labels])
    data = read_labelled(path)
    header, *rows = path.read_text().splitlines()
    for _ in range(3):
        generator.shuffle(rows)
        shuffled = read_labelled(csv_file(tmp_path, header, *rows, name="shuffled.csv"))
        assert splits(shuffled) == splits(data) and shuffled.split_hash == data.split_hash
        assert [t.track_id for t in shuffled.tracks] == [t.track_id for t in data.tracks]
    renamed = [row.rpartition(",")[0] + f",artist {row.rpartition(',')[2]}" for row in rows]
    assert splits(read_labelled(csv_file(tmp_path, header, *renamed, name="r.csv"))) == splits(data)
    assert splits(read_labelled(path, seed=1)) != splits(data)


@pytest.mark.parametrize("seed", range(25))
def test_made_splits_keep_groups_together_and_every_class_in_training(tmp_path, seed):
    """Groups of one class each: every class with three groups is in all three splits."""
    generator = random.Random(seed)
    classes = [f"c{i}" for i in range(generator.randint(2, 6))]
    groups = [(generator.choice(classes), f"g{i}", generator.randint(1, 4)) for i in range(30)]
    rows = [(label, group) for label, group, size in groups for _ in range(size)]
    data = read_labelled(many(tmp_path, [r[0] for r in rows], [r[1] for r in rows]), seed=seed)
    data.check_groups()
    found, num_groups = defaultdict(set), defaultdict(set)
    for track in data.tracks:
        found[track.annotation.name].add(track.split)
        num_groups[track.annotation.name].add(track.group)
    for label, home in found.items():
        assert "train" in home
        assert len(home) == min(3, len(num_groups[label]))
    assert sum(data.counts.values()) == len(rows)
    assert 0.5 < data.counts["train"] / len(rows) < 0.8


@pytest.mark.parametrize("seed", range(25))
def test_made_splits_of_tags_and_mixed_groups_leave_nothing_that_training_lacks(tmp_path, seed):
    generator = random.Random(seed)
    tags = ["|".join(sorted(generator.sample("pqrstuv", generator.randint(0, 4)))) for _ in range(50)]
    groups = [generator.randrange(25) for _ in tags]
    data = read_labelled(many(tmp_path, tags, groups, columns="path,labels"), seed=seed)
    data.check_groups()
    used = {s: {n for t in data.split(s) for n, v in t.annotation.scores.items() if v} for s in SPLITS}
    assert used["train"] == set(data.names)
    labels = [generator.choice("pqrst") for _ in tags]
    mixed = read_labelled(many(tmp_path, labels, groups), seed=seed)
    assert {t.annotation.name for t in mixed.split("train")} == set(labels)
    mixed.check_groups()


def test_of_two_groups_the_larger_is_in_training_and_the_others_are_shared_out(tmp_path):
    classes = [f"c{i}" for i in range(10)]
    rows = [(c, f"{c} {size}") for c in classes for size in (1, 4) for _ in range(size)]
    for seed in range(5):
        data = read_labelled(many(tmp_path, [r[0] for r in rows], [r[1] for r in rows]), seed=seed)
        assert {t.group for t in data.split("train")} == {f"{c} 4" for c in classes}
        assert data.counts == {"train": 40, "valid": 5, "test": 5}


def test_a_class_whose_groups_went_elsewhere_with_others_gets_one_back_into_training(tmp_path):
    mixed = [("a", "1"), ("c", "3")] * 3 + [("a", "2"), ("z", "2"), ("c", "4"), ("z", "4")]
    mixed += [("x", f"x{i}") for i in range(6)]  # a and c keep 1 and 3 in training and send 2 and 4 elsewhere
    for seed in range(5):
        data = read_labelled(many(tmp_path, [m[0] for m in mixed], [m[1] for m in mixed]), seed=seed)
        home = {t.group: t.split for t in data.tracks}
        assert home["1"] == home["3"] == "train"
        assert [home["2"], home["4"]].count("train") == 1
        assert "train" in {t.split for t in data.tracks if t.annotation == Label("z")}


def test_given_splits_without_validation_take_it_out_of_training_by_group(tmp_path):
    groups = [f"g{i // 2}" for i in range(80)]
    path = many(tmp_path, ["xy"[i // 2 % 2] for i in range(80)], groups)
    rows = path.read_text().splitlines()
    given = [f"{r},{'test' if i >= 60 else 'train'}" for i, r in enumerate(rows[1:])]
    data = read_labelled(csv_file(tmp_path, rows[0] + ",split", *given))
    assert data.counts["test"] == 20 and data.counts["valid"] in (8, 10) and data.counts["train"] >= 50
    assert {t.track_id for t in data.split("test")} == {f"{i:04d}.wav" for i in range(60, 80)}
    data.check_groups()
    assert data.how_split == "splits as given, and validation is 15 % of training by group, seed 0"
    only_train = read_labelled(csv_file(tmp_path, rows[0] + ",split", *(f"{r},train" for r in rows[1:])))
    assert only_train.counts["test"] == 0 and only_train.counts["valid"] in (12, 14)
    assert any(line.startswith("There is no test split") for line in only_train.report())


def test_files_that_are_missing_take_no_part_in_made_splits(tmp_path):
    path = many(tmp_path, ["x"] * 6 + ["y"] * 6)
    (tmp_path / "0000.wav").unlink()
    data = read_labelled(path)
    rows = [r for r in path.read_text().splitlines() if not r.startswith("0000")]
    assert splits(data) == splits(read_labelled(csv_file(tmp_path, *rows)))


# Report ----------------------------------------------------------------------------------------------------


def test_the_report_counts_classes_and_says_when_they_are_unbalanced(tmp_path):
    path = many(tmp_path, ["x"] * 60 + ["y"] * 3 + ["Y"] * 3)
    report = read_labelled(path, seed=3).report()
    assert report == [
        f"{path}: 66 recordings, class: 44 train, 11 valid, 11 test (split 70/15/15 by recording, seed 3)",
        "  x: 60 (91%): 42 train, 9 valid, 9 test",
        "  Y: 3 (5%): 1 train, 1 valid, 1 test",
        "  y: 3 (5%): 1 train, 1 valid, 1 test",
        "Imbalanced: 'x' is 42 times as frequent as 'Y' in training. Accuracy tells mostly about the frequent ones; "
        "look at every class, or add rare ones.",
        "Read as different, though they look alike: 'Y' and 'y'.",
    ]
    for times, said in ((10, False), (11, True)):  # more than ten times
        rows = [
            f"{i:04d}.wav,{'xy'[i >= times]},{'train' if i <= times else 'dev'}" for i in range(times + 2)
        ]
        lines = read_labelled(csv_file(tmp_path, "path,label,split", *rows)).report()
        assert any("Imbalanced" in line for line in lines) is said
    balanced = read_labelled(many(tmp_path, ["x"] * 10 + ["y"] * 9)).report()
    assert len(balanced) == 3 and not any("Imbalanced" in line for line in balanced)


def test_the_report_of_tags_numbers_and_keys(tmp_path, folder):
    rows = [
        "a.wav,x|always,train",
        "b.wav,always,train",
        "c.wav,x|never,valid",
        "d.wav,always,test",
    ]
    assert read_labelled(csv_file(folder, "path,labels,split", *rows)).report()[1:] == [
        "  always: 3 (75%): 2 train, 0 valid, 1 test",
        "  x: 2 (50%): 1 train, 1 valid, 0 test",
        "  never: 1 (25%): 0 train, 1 valid, 0 test",
        "No training recording has, so nothing can learn: never.",
        "Every training recording has, so nothing can learn: always.",
        "No valid recording of: always.",
        "No test recording of: x.",
    ]
    rows = ["a.wav,1,train", "b.wav,3,train", "c.wav,2,valid", "d.wav,2,valid"]
    assert read_labelled(csv_file(folder, "path,value,split", *rows)).report()[1:] == [
        "  value, train: 1 to 3, mean 2, deviation 1",
        "  value, valid: 2 to 2, mean 2, deviation 0",
        "There is no test split, so nothing will say how good the result is on new recordings.",
        "The same number in all of valid: value. R2 says nothing there.",
    ]
    rows = ["a.wav,C major,train", "b.wav,D minor,train", "c.wav,E minor,valid", "d.wav,D minor,test"]
    report = read_labelled(csv_file(folder, "path,key,split", *rows)).report()
    assert "No training recording is in: E minor." in report
    assert "No valid recording of: C major, D minor." in report


def test_the_report_of_many_classes_is_short(tmp_path):
    report = read_labelled(many(tmp_path, [f"class {i // 3:02d}" for i in range(180)])).report()
    assert report[41] == "  and 20 more, with 3 recordings each at most" and len(report) == 42


# Folders ---------------------------------------------------------------------------------------------------


def test_a_folder_per_class(tmp_path):
    for name in "xy":
        touch(
            tmp_path / "data",
            *(f"{name}/{i}.wav" for i in range(4)),
            f"{name}/deep/er/5.MP3",
            f"{name}/cover.jpg",
        )
    touch(tmp_path / "data", ".hidden/1.wav", "x/.2.wav", "README.md")
    data = read_labelled(tmp_path / "data")
    assert data.kind == "class" and data.names == ("x", "y") and len(data.tracks) == 10
    assert annotations(data)["x/deep/er/5.MP3"] == Label("x")
    assert {t.split for t in data.tracks if t.annotation.name == "x"} == set(SPLITS)
    assert data.warnings == ("Not read: 3 files that are not audio.", "Not read: 2 hidden files and folders.")
    assert {t.line for t in data.tracks} == {0} and all(t.audio_path.is_file() for t in data.tracks)
    csv = csv_file(tmp_path / "data", "path,label", *(f"{t.track_id},{t.annotation}" for t in data.tracks))
    assert read_labelled(csv).split_hash == data.split_hash


def test_folders_of_splits_and_of_keys(tmp_path):
    for split, number in (("Train", 2), ("validation", 1), ("testing", 1)):
        touch(tmp_path, *(f"{split}/{k}/{i}.wav" for k in ("C major", "a minor") for i in range(number)))
    data = read_labelled(tmp_path)
    assert data.counts == {"train": 4, "valid": 2, "test": 2} and data.how_split == "splits as given"
    assert data.names == ("C major", "a minor")
    keys = read_labelled(tmp_path, "key")
    assert annotations(keys)["Train/a minor/0.wav"] == Key(9, "minor") and keys.split_hash == data.split_hash
    (tmp_path / "testing" / "C major" / "0.wav").unlink()
    assert "The folder testing/C major has no audio file." in read_labelled(tmp_path).warnings


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        (["x/1.wav", "y/"], {}, "a class without an audio file: y. Add recordings"),
        (["x/1.wav", "y/2.wav", "3.wav"], {}, "1 audio files are in no folder of a class: 3.wav."),
        (["train/x/1.wav", "train/2.wav"], {}, "class: 2.wav."),
        (["notes.txt"], {}, "Lay recordings out as CLASS/FILE, or write a CSV file."),
        (["labels.csv"], {}, "labels.csv."),
        (["train/", "test/x/1.wav"], {}, "train: no folder of a class"),
        (["train/x/1.wav", "rock/1.wav"], {}, "'train' is the name of a split and 'rock' is not"),
        (["train/x/1.wav", "val/x/1.wav", "dev/x/1.wav"], {}, "are the split 'valid': dev, val."),
        (["x/1.wav", "y/1.wav"], {"kind": "tags"}, "not 'tags'"),
        (["x/1.wav", "y/1.wav"], {"kind": "key"}, "not a key: 'x', 'y'. Name folders"),
        (["x/1.wav", "y/1.wav"], {"ignore_columns": ["a"]}, "is a folder"),
        (["a\nb/1.wav", "y/1.wav"], {}, "'a\\nb'. Rename the folder."),
        (["x/\n.wav", "y/\n.wav"], {}, "its name x/\\n.wav has characters"),
        (["x/1.wav", "x/2.wav", "x/3.wav"], {}, "all recordings are 'x'"),
    ],
)
def test_folders_that_are_refused(tmp_path, names, arguments, message):
    for name in names:
        if name.endswith("/"):
            (tmp_path / name).mkdir(parents=True)
        else:
            touch(tmp_path, name)
    with pytest.raises(LabelError) as caught:
        read_labelled(tmp_path, **arguments)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)
    assert is_documented(str(caught.value))


def test_one_file_in_two_folders_is_found(tmp_path):
    touch(tmp_path, "x/1.wav", "x/2.wav", "y/3.wav", "y/4.wav")
    (tmp_path / "y" / "5.wav").symlink_to(tmp_path / "x" / "1.wav")
    with pytest.raises(LabelError, match=r"the same file with two labels: x/1\.wav and y/5\.wav"):
        read_labelled(tmp_path)


def test_names_that_are_not_text_are_skipped_and_counted(tmp_path):
    touch(tmp_path, *(f"{c}/{i}.wav" for c in "xy" for i in range(4)))
    try:
        with open(os.fsencode(tmp_path / "x") + b"/\xff.wav", "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes no names that are not UTF-8")
    data = read_labelled(tmp_path)
    assert len(data.tracks) == 8
    assert [s.track_id for s in data.skipped] == ["x/\\udcff.wav"]
    assert len(data.split_hash) == 64 and "\\udcff" in "".join(data.report())


# The task --------------------------------------------------------------------------------------------------


def test_tasks_have_the_target_and_metrics_of_their_kind_and_perfect_answers_score_the_maximum(folder):
    touch(folder, "g.wav", "h.wav")
    names = [f"{n}.wav" for n in "abcdefgh"]
    files = {
        "label": ["x", "y", "z", "x", "y", "z", "x", "y"],
        "labels": ["p|q", "p", "", "q", "p", "", "q", "p"],
        "key": ["C major", "D minor"] * 4,
        "value": list(range(8)),
    }
    expected = {
        "label": (ClassTarget(("x", "y", "z")), ["accuracy", "accuracy_class_macro"], "which of 3 classes?"),
        "labels": (TagsTarget(("p", "q")), ["ap", "roc_auc"], "which of 2 tags?"),
        "key": (KeyTarget(), ["key_weighted", "accuracy"], "which of 24 keys?"),
        "value": (None, ["r2", "mae"], "how much: value?"),
    }
    for column, values in files.items():
        given = [
            f"{n},{v},{s}"
            for n, v, s in zip(names, values, ["train"] * 4 + ["dev"] * 2 + ["test"] * 2, strict=True)
        ]
        data = read_labelled(csv_file(folder, f"path,{column},split", *given, name=f"my-{column}.csv"))
        task = labelled_task(data)
        target, metrics, question = expected[column]
        assert task.name == f"my-{column}" and task.question == question and task.name not in TASKS
        assert [m.name for m in task.metrics] == metrics
        if target is None:
            assert task.target == ValuesTarget(("value",), (1.5,), (1.25**0.5,))
        else:
            assert task.target == target
        references = [task.annotation(t) for t in data.split("train")]
        outputs = torch.stack([task.target.encode(r) for r in references])
        if outputs.ndim == 1:
            outputs = torch.nn.functional.one_hot(outputs, task.target.num_outputs)
        estimates = [task.target.decode(row) for row in outputs.double()]
        scores = {m.name: m.compute(references, estimates) for m in task.metrics}
        assert scores == {
            m.name: pytest.approx(1.0 if m.higher_is_better else 0.0, abs=1e-6) for m in task.metrics
        }
    assert labelled_task(data, "loudness").name == "loudness"
    assert "labelled" not in DATASETS  # it has no root of its own


def test_the_first_metric_is_defined_on_the_smallest_validation_split(folder):
    rows = ["a.wav,p,train", "b.wav,q,train", "c.wav,p|q,dev", "d.wav,p,test"]
    data = read_labelled(csv_file(folder, "path,labels,split", *rows))
    task = labelled_task(data)
    references = [task.annotation(t) for t in data.split("valid")]
    assert task.metrics[0].compute(references, [Tags({"p": 0.2, "q": 0.9})]) == 1.0
    with pytest.raises(ValueError, match="positives and negatives"):
        task.metrics[1].compute(references, references)


def test_tracks_load_their_audio(tmp_path):
    path = many(tmp_path, ["x"] * 3 + ["y"] * 3)
    soundfile.write(tmp_path / "0000.wav", [0.5] * 800, 8000)
    track = next(t for t in read_labelled(path).tracks if t.track_id == "0000.wav")
    assert track.load(8000).shape == (800,)

import re

import pytest

from lcgcn_jax.data.formats.parsing import parse_number, parse_size, read_json, read_xml
from lcgcn_jax.errors import InputError

ENTITIES = """<?xml version="1.0"?>
<!DOCTYPE dataset [
 <!ENTITY a "aaaaaaaaaa">
 <!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
 <!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">
]>
<dataset><name>&c;</name><images/></dataset>"""
EXTERNAL = """<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/hostname">]><d>&x;</d>"""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (ENTITIES.encode(), "document type"),
        (EXTERNAL.encode(), "document type"),
        (b'<!DOCTYPE html SYSTEM "http://localhost/x.dtd"><html/>', "document type"),
        (b"<a>&nothing;</a>", "undefined entity"),
        (b"<a><b></a>", "mismatched tag"),
        (b"<a>", "no element found"),
        (b"", "no element found"),
        (b"<a>\xff</a>", "not well-formed"),
        (b"<?xml version='1.0' encoding='klingon'?><a/>", "unknown encoding"),
    ],
)
def test_wrong_xml_raises(tmp_path, content, reason):
    path = tmp_path / "a.xml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(reason)) as error:
        read_xml(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1", "windows-1252"])
def test_xml_encodings(tmp_path, encoding):
    path = tmp_path / "a.xml"
    path.write_bytes(f"<?xml version='1.0' encoding='{encoding}'?><a b='é'/>".encode(encoding))
    assert read_xml(path).get("b") == "é"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_wrong_json_raises(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not JSON in UTF-8") as error:
        read_json(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_encodings(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_bytes('["é"]'.encode(encoding))
    assert read_json(path) == ["é"]


def test_unreadable_files_raise(tmp_path):
    for read in (read_xml, read_json):
        for path in (tmp_path, tmp_path / "nothing"):
            with pytest.raises(InputError, match="cannot be read"):
                read(path)


def test_parse_number_and_size():
    assert parse_number("1.5", "x") == 1.5
    assert parse_number(2, "x") == 2
    for value in (None, "", "a", "1_2", "nan", "inf", True, [], 10**400):
        with pytest.raises(ValueError, match="x is"):
            parse_number(value, "x")
    assert parse_size("640", 480.0) == (640, 480)
    assert parse_size(639.9, "480.2") == (640, 480)
    for size in (
        (True, 3),
        (0.6, 3),
        (None, 3),
        ("a", 3),
        (0, 3),
        (-1, 3),
        (float("nan"), 3),
        (float("inf"), 3),
    ):
        assert parse_size(*size) is None

"""Which elements of a DICOM file identify a person: names of elements, never their values.

The list is that of the Basic Application Level Confidentiality Profile (PS3.15 2024b, table E.1-1): every element whose
action is to remove, empty, replace or clean. An empty list of findings is no proof of de-identification.
"""

from collections.abc import Iterator
from typing import Any

from medfuse.errors import DataError
from medfuse.loaders._dicom_enhanced import check_length, typed
from medfuse.loaders._dicom_header import DEFLATED, Header, inflated, meta_of
from medfuse.loaders.base import Identifying

_TABLE = """
0000 1000 1001
0002 0003
0004 1511
0008 0012 0013 0014 0015 0017 0018 0019 0020 0021 0022 0023 0024 0025 002A 0030 0031 0032 0033 0034 0035 0050
0008 0054 0055 0058 0080 0081 0082 0090 0092 0094 0096 009C 009D 0106 0107 0201 1000 1010 1030 103E 1040 1041
0008 1048 1049 1050 1052 1060 1062 1070 1072 1080 1084 1088 1110 1111 1120 1140 1155 1195 2111 2112 3010 4000
0010 0010 0020 0021 0030 0032 0040 0050 0101 0102 1000 1001 1002 1005 1010 1020 1030 1040 1050 1060 1080 1081
0010 1090 1100 2000 2110 2150 2152 2154 2155 2160 2180 21A0 21B0 21C0 21D0 21F0 2203 2297 2299 4000
0012 0010 0020 0021 0022 0023 0030 0031 0032 0040 0041 0042 0043 0050 0051 0055 0060 0071 0072 0073 0081 0082
0012 0086 0087
0014 407C 407E
0016 002B 004B 004D 004E 004F 0050 0051 0070 0071 0072 0073 0074 0075 0076 0077 0078 0079 007A 007B 007C 007D
0016 007E 007F 0080 0081 0082 0083 0084 0085 0086 0087 0088 0089 008A 008B 008C 008D 008E
0018 0010 0027 0035 1000 1002 1004 1005 1007 1008 1009 100A 100B 1012 1014 1030 1042 1043 1072 1073 1078 1079
0018 11BB 1200 1201 1202 1203 1204 1205 1400 2042 4000 5011 700A 700C 700E 9074 9151 9185 9367 9369 936A 9371
0018 9373 937B 937F 9424 9516 9517 9623 9701 9804 9919 9937 A002 A003
0020 000D 000E 0010 0027 0052 0200 3401 3403 3405 3406 4000 9158 9161 9164
0028 1199 1214 4000
0032 0012 0032 0033 0034 0035 1000 1001 1010 1011 1020 1021 1030 1032 1033 1040 1041 1050 1051 1060 1066 1067
0032 1070 4000
0034 0001 0002 0005 0007
0038 0004 0010 0011 0014 001A 001B 001C 001D 001E 0020 0021 0030 0032 0040 0050 0060 0061 0062 0064 0300 0400
0038 0500 4000
003A 0310 0314 0329 032B
0040 0001 0002 0003 0004 0005 0006 0007 0009 000B 0010 0011 0012 0241 0242 0243 0244 0245 0250 0251 0253 0254
0040 0275 0280 0310 050A 0512 0513 051A 0551 0554 0555 0562 0600 0602 0610 06FA 1001 1002 1004 1005 100A 1010
0040 1011 1101 1102 1103 1104 1400 2001 2004 2005 2008 2009 2010 2011 2016 2017 2400 3001 4005 4008 4010 4011
0040 4025 4027 4028 4030 4034 4035 4036 4037 4050 4051 4052 A023 A024 A027 A030 A032 A033 A073 A075 A078 A07A
0040 A07C A082 A088 A110 A112 A120 A121 A122 A123 A124 A13A A171 A172 A192 A193 A307 A352 A353 A354 A358 A402
0040 A730 DB06 DB07 DB0C DB0D E004
0042 0011
0044 0004 000B 0010 0104 0105
0050 001B 0020 0021
0062 0021
0064 0003
0068 6226 6270
006A 0003 0005 0006
0070 0001 0082 0083 0084 0086 031A 1101 1102
0072 000A 005E 005F 0061 0063 0065 0066 0068 006A 006B 006C 006D 006E 0070 0071
0074 1234 1236
0088 0140 0200 0904 0906 0910 0912
0100 0420
0400 0100 0105 0115 0310 0402 0403 0404 0550 0551 0552 0561 0562 0563 0564 0565 0600
2030 0020
2100 0040 0050 0070 0140
2200 0002 0005
3002 0121 0123
3006 0002 0004 0006 0008 0009 0024 0026 0028 002D 002E 0038 004D 004E 0085 0088 00A6 00C2
3008 0024 0025 0054 0056 0105 0162 0164 0166 0168 0250 0251
300A 0002 0003 0004 0006 0007 000B 000E 0013 0016 0072 0083 00B2 00C3 00DD 0196 01A6 01B2 0216 022C 022E 02EB
300A 0608 0609 0611 0615 0619 0623 062A 0650 0676 067C 067D 0700 0734 0736 073A 0741 0742 0760 0783 0785 078E
300A 0792 0794 079A
300C 0113 0127
300E 0004 0005 0008
3010 0006 000B 000F 0013 0015 0017 001B 002D 0031 0033 0034 0035 0036 0037 0038 003B 0043 004C 004D 0054 0056
3010 005A 005C 0061 006E 006F 0077 007A 007B 007F 0081 0085
4000 0010 4000
4008 0040 0042 0100 0101 0102 0108 0109 010A 010B 010C 0111 0112 0113 0114 0115 0118 0119 011A 0200 0202 0300
4008 4000
FFFA FFFA
FFFC FFFC
"""
PROFILE = frozenset(
    int(row[:4] + element, 16) for row in _TABLE.split("\n") if row for element in row[5:].split()
)  # group, then elements
_RISKY = ("US", "IVUS", "SC", "OT", "ES", "XC", "GM", "DG")  # modalities that show text in their pixels
_SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
_KINDS = {"PN": "name", "DA": "date", "DT": "date", "TM": "date", "AS": "date", "UI": "id", "SQ": "record"}
_HEADS = ("HEAD", "BRAIN", "SKULL", "FACE", "HEADNECK", "NECK", "JAW", "SINUS", "ORBIT")


def _is_profile(tag: int) -> bool:
    group, element = tag >> 16, tag & 0xFFFF
    curve = 0x5000 <= group <= 0x50FF
    overlay = 0x6000 <= group <= 0x60FF and element in (0x3000, 0x4000)
    return tag in PROFILE or curve or overlay


def _kind(element: Any) -> str:  # noqa: ANN401  # of pydicom
    name = element.keyword
    if element.VR in _KINDS:
        return _KINDS[element.VR]
    return "id" if name.endswith(("ID", "IDs", "Number", "Identifier")) else "free text"


def _full(header: Header) -> Any:  # noqa: ANN401  # a pydicom data set
    import io

    import pydicom
    from pydicom.filereader import read_dataset

    if header.syntax == DEFLATED:
        with header.path.open("rb") as file:
            at = meta_of(file.read(4096))[2]
        content = io.BytesIO(inflated(header.path, at, most=4 << 20))
        return read_dataset(content, False, True, stop_when=lambda tag, vr, length: tag >= 0x7FE00008)  # noqa: FBT003
    check_length(header)
    return pydicom.dcmread(header.path, stop_before_pixels=True, force=True)


def _elements(data: Any, depth: int = 0) -> Iterator[tuple[int, Any]]:  # noqa: ANN401  # of pydicom
    """All elements, those in sequences too; one that cannot be read is (tag, None)."""
    for tag in data.keys():  # noqa: SIM118  # a data set iterates over elements
        try:
            element = data[tag]
        except Exception:  # noqa: BLE001  # a value that pydicom cannot convert is still there
            yield int(tag), None
            continue
        yield int(tag), element
        if element.VR == "SQ" and depth < 32:
            for item in element.value:
                yield from _elements(item, depth + 1)


def in_header(header: Header) -> set[tuple[str, str]]:
    """What identifies a person in one file, as (where, kind).

    Raises:
        DataError: damaged.
    """
    found: set[tuple[str, str]] = set()
    with typed(header, "a header"):
        for tag, element in _elements(_full(header)):
            if (tag >> 16) % 2 and tag >> 16 > 8:
                found.add((f"({tag >> 16:04X},xxxx) private elements", "private"))
            elif _is_profile(tag) and (element is None or not element.is_empty):
                name = element.keyword if element is not None else ""
                found.add(
                    (
                        f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {name or 'unnamed'}",
                        _kind(element) if element else "free text",
                    )
                )
            elif tag == 0x00180015 and element is not None and str(element.value).upper() in _HEADS:
                found.add(("(0018,0015) BodyPartExamined: a head, whose face can be drawn from a volume", "image"))
    flag = header.text("BurnedInAnnotation").upper()
    if flag == "YES":
        found.add(("(0028,0301) BurnedInAnnotation: text in the pixels", "pixels"))
    elif flag != "NO" and (header.text("Modality") in _RISKY or header.text("SOPClassUID").startswith(_SECONDARY)):
        found.add(
            (
                "pixels of ultrasound, screenshots and captures often show names; nothing says that these do not",
                "pixels",
            )
        )
    return found


def identifying(headers: list[Header]) -> list[Identifying]:
    """What identifies a person in files that belong together, each place once."""
    found: set[tuple[str, str]] = set()
    for header in headers:
        try:
            found |= in_header(header)
        except DataError:
            found.add(("an element that cannot be read", "free text"))
    return [Identifying(where=where, kind=kind) for where, kind in sorted(found)]

"""Small files in MovieLens form that the tests of this room share."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pandas as pd

from dlcf.ratings import COLUMNS

ROWS = [(1, 10, 4.0, 964982703), (1, 20, 3.5, 964981247), (2, 10, 0.5, 847434962)]
CSV = "userId,movieId,rating,timestamp\n" + "".join(f"{u},{m},{r},{t}\n" for u, m, r, t in ROWS)
MOVIES_CSV = (
    "movieId,title,genres\n"
    '10,"Matrix, The (1999)",Action|Sci-Fi\n'
    "20,Null,(no genres listed)\n"
    "30,NA (2012) ,Film-Noir\n"
)
TAGS_CSV = "userId,movieId,tag,timestamp\n2,10,NA,1445714994\n2,10,it's great,1445714996\n"
HEAD = "userId,movieId,rating,timestamp\n"
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tToy Story\t1995\tAnimation Children's Sci-Fi\n"
    "267\tunkonwn\tunkonwn\tunknown\n"
    "1412\tLand Before Time III (1995)\tV\tAnimation\n"
)


def make_archive(
    path: Path, files: dict[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return path


def frame(rows: list[tuple[Any, ...]] = ROWS, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS).assign(**columns)


def folder_with(folder: Path, **files: str | bytes) -> Path:
    """A folder with the files given; the name's last underscore stands for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        file = folder / ".".join(name.rsplit("_", 1))
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder

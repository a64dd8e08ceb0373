"""SQL sources: rows of a query of a SQLite file or a PostgreSQL server, as Arrow tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa

from clv.data.spec.models import SpecError

FETCH_ROWS = 50_000


def query(url: str, sql: str, where: str, limit: int | None = None) -> Iterator[pa.Table]:
    """Yields the rows of a query in tables of bounded size. Raises SpecError with the server's message.

    url: sqlite:///file, or postgresql://user:password@host:port/database.
    """
    scheme = url.split("://")[0]
    if limit is not None:
        sql = f"select * from ({sql.strip().rstrip(';')}) as q limit {limit}"
    if scheme == "sqlite":
        yield from _sqlite(url.removeprefix("sqlite:///"), sql, where)
    elif scheme in ("postgresql", "postgres"):
        yield from _postgresql(url, sql, where)
    else:
        raise SpecError(f"{where}: {scheme!r} is not supported; use sqlite:///file, postgresql://, or Parquet files")


def _sqlite(path: str, sql: str, where: str) -> Iterator[pa.Table]:
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        cursor = connection.execute(sql)
    except sqlite3.Error as error:
        raise SpecError(f"{where}: {error}; correct url or query") from error
    with closing(connection):
        names = [column[0] for column in cursor.description]
        while rows := cursor.fetchmany(FETCH_ROWS):
            columns = [_column(list(values)) for values in zip(*rows, strict=True)]
            yield pa.table(columns, names=names)


def _postgresql(url: str, sql: str, where: str) -> Iterator[pa.Table]:
    try:
        from adbc_driver_postgresql import dbapi
    except ImportError:
        raise SpecError(f"{where}: the driver is missing: pip install 'clv[postgresql]'") from None
    try:
        with dbapi.connect(url) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            for batch in cursor.fetch_record_batch():
                yield pa.table([_plain(column) for column in batch.columns], names=batch.schema.names)
    except dbapi.Error as error:
        message = " ".join(str(error).split())
        raise SpecError(f"{where}: {message}; correct url or query") from error


def _plain(column: pa.Array) -> pa.Array:
    """Returns the column as plain Arrow: the driver wraps a numeric as text and a uuid as bytes."""
    if isinstance(column, pa.ExtensionArray):
        if column.type.extension_name == "arrow.uuid":
            return pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
        return column.storage
    return column


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int} or kinds <= {int, float}:
        return pa.array(values, pa.float64() if float in kinds else pa.int64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())

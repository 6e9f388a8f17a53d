"""One Parquet file as typed columns, with the row and reason of every value that does not fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from lsvcr.data.sources.columns import WORDS, Column, is_good, typed
from lsvcr.data.sources.logs import LISTED, ROW, BadRows
from lsvcr.utils.errors import UserError

_FAULT = "\nfault"
_VALUE = "\nvalue "


class ParquetTable:
    """One Parquet file.

    Args:
        path: the file.
        columns: what is needed of it.
        partition: columns that stand in the folder's name (`day=2024-05-31`) instead of in the file.

    Raises:
        UserError: no Parquet file, a needed column is missing or of a type that cannot be read, or an id column holds
            fractions.
    """

    def __init__(
        self, path: Path, columns: Sequence[Column], partition: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        self.name = path.name
        self._columns = tuple(columns)
        try:
            schema = pl.read_parquet_schema(path)
        except (pl.exceptions.ComputeError, OSError) as error:
            raise self._damage(error) from None
        self._partition = {name: value for name, value in (partition or {}).items() if name not in schema}
        self._dtypes = {**schema, **dict.fromkeys(self._partition, pl.String())}
        missing = [column.name for column in columns if column.name not in self._dtypes]
        if missing:
            raise UserError(f"{path} has no column {', '.join(missing)}; it has {', '.join(self._dtypes)}")
        for column in columns:
            if column.kind in ("id", "key") and self._dtypes[column.name].is_float():
                raise UserError(
                    f"{path}: the ids in {column.name} are {self._dtypes[column.name]}, which cannot tell long "
                    "numbers apart; write the column as BIGINT or STRING"
                )
            if not _can_read(column, self._dtypes[column.name]):
                raise UserError(
                    f"{path}: {column.name} is {self._dtypes[column.name]}, expected {WORDS[column.kind]}; write the "
                    "column as STRING, or as the number or timestamp that it is"
                )

    def collect_part(self, bad: BadRows, keep: pl.Expr | None = None) -> tuple[pl.DataFrame, int, int]:
        """Read the needed columns; see `CsvTable.collect_part`.

        Raises:
            UserError: a broken row (see `BadRows`), or a damaged file.
        """
        rows = pl.scan_parquet(self.path, row_index_name=ROW, hive_partitioning=False, glob=False)
        rows = rows.with_columns(pl.lit(value).alias(name) for name, value in self._partition.items())
        fault = pl.lit(0, pl.UInt8)
        for index, column in reversed(list(enumerate(self._columns, start=1))):
            good = is_good(column, self._dtypes[column.name])
            fault = pl.when(good).then(fault).otherwise(pl.lit(index, pl.UInt8))
        raw = [pl.col(column.name).alias(_VALUE + column.name) for column in self._columns]
        values = [typed(column, self._dtypes[column.name]).alias(column.name) for column in self._columns]
        typed_rows = rows.select(ROW, *raw, *values, fault.alias(_FAULT))
        broken = typed_rows.filter(pl.col(_FAULT) > 0)
        wanted = typed_rows.filter(pl.col(_FAULT) == 0)
        if keep is not None:
            wanted = wanted.filter(keep)
        wanted = wanted.select(ROW, *(column.name for column in self._columns))
        try:
            found, faults, size = pl.collect_all([wanted, broken, rows.select(pl.len())], engine="streaming")
        except (pl.exceptions.ComputeError, OSError) as error:
            raise self._damage(error) from None
        self._report(faults.sort(ROW), bad)
        return found.sort(ROW), int(size.item()), int(size.item())

    def places(self, rows: Sequence[int]) -> list[str]:
        """`file, row n` for each of `rows`, counted from 1."""
        return [f"{self.path}, row {row + 1}" for row in rows]

    def _report(self, broken: pl.DataFrame, bad: BadRows) -> None:
        lines = []
        for row in broken.head(LISTED).iter_rows(named=True):
            column = self._columns[row[_FAULT] - 1]
            value = row[_VALUE + column.name]
            shown = "empty" if value is None else repr(value)
            (place,) = self.places([row[ROW]])
            lines.append(f"{place}: {column.name} is {shown}, expected {WORDS[column.kind]}")
        bad.add(self.name, broken.height, lines)

    def _damage(self, error: Exception) -> UserError:
        return UserError(
            f"{self.path} cannot be read as Parquet ({str(error).splitlines()[0]}); write or copy it again"
        )


def _can_read(column: Column, dtype: pl.DataType) -> bool:
    """Whether values of this type can be cast at all."""
    if dtype.is_nested():
        return False
    try:
        pl.DataFrame(schema={column.name: dtype}).select(
            is_good(column, dtype).alias(_FAULT), typed(column, dtype)
        )
    except pl.exceptions.PolarsError:
        return False
    return True

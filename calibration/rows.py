"""Text out of a row: which column holds it, what to do where it is missing, and rows that hold none."""

from collections.abc import Iterable, Iterator
from typing import Any

from core.errors import DataError
from core.say import note

TEXT_COLUMN = "text"
MOST_NAMES = 12
LONGEST_NAME = 40  # characters; what is longer is text where a name should be
CHAT_COLUMNS = ("messages", "conversations", "conversation")
GIVE_ROWS = f': give rows of text, e.g. {{"{TEXT_COLUMN}": "..."}} one a line, or a list of strings'


class NoTextError(DataError):
    """The file can be read and holds no text: in a folder it is passed over, alone it is refused."""


def texts(rows: Iterable[tuple[str, Any]], column: str, file: str) -> Iterator[str]:
    """The text of each row, given as (where it stands, row); rows without one are left out and counted in a note.

    A row is a dict, or a string itself. The first row must have the column; later ones may lack it or hold null.
    """
    skipped = 0
    for number, (where, row) in enumerate(rows):
        text = _text_of(row, column, where, first=number == 0)
        if text is None:
            skipped += 1
        else:
            yield text
    if skipped:
        note(f'{file}: {skipped:,} row{"s" * (skipped > 1)} without text in "{column}" left out')


def _text_of(row: Any, column: str, where: str, first: bool) -> str | None:
    if isinstance(row, str):
        return encodable(row)
    if not isinstance(row, dict):
        raise NoTextError(f'{where} has no "{column}" string (it is {_in_words(row)}){GIVE_ROWS}')
    text = row.get(column)
    if isinstance(text, str):
        return encodable(text)
    if text is None and (column in row or not first):
        return None
    strings = [name for name, value in row.items() if isinstance(value, str)]
    named = [f"{name}, a {type(text).__name__}" if name == column else name for name in map(str, row)]
    raise no_column(where, "string", column, named, strings)


def encodable(text: str) -> str:
    """Half of a surrogate pair, which JSON can spell and UTF-8 cannot, becomes ``?``."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def no_column(where: str, what: str, column: str, columns: list[str], strings: list[str]) -> NoTextError:
    """columns: all there are. strings: those that hold text, one of which may be meant."""
    names = ", ".join(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…" for name in columns[:MOST_NAMES])
    more = f", and {len(columns) - MOST_NAMES} more" if len(columns) > MOST_NAMES else ""
    return NoTextError(f'{where} has no "{column}" {what} (it has: {names}{more}){_next_step(columns, strings)}')


def _next_step(columns: list[str], strings: list[str]) -> str:
    chat = next((name for name in CHAT_COLUMNS if any(column.split(",")[0] == name for column in columns)), None)
    names = [name for name in strings if len(name) <= LONGEST_NAME]
    if chat is not None:
        return (
            f': "{chat}" are chats, which only the model\'s own template turns into text: write '
            f'tokenizer.apply_chat_template(row["{chat}"], tokenize=False) to a column "{TEXT_COLUMN}" first'
        )
    if len(names) == 1:
        return f": add --text_column {names[0]}"
    if strings and not names:
        return f': its first line must name its columns, "{TEXT_COLUMN}" among them'
    return ": give the one that holds the text as --text_column" if names else GIVE_ROWS


def _in_words(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")

"""What a reader sees of a page: its words and the rows of its tables, without the markup."""

import lxml.html


def words(page: str) -> str:
    return " ".join(lxml.html.fromstring(page).text_content().split())


def rows(page: str) -> list[tuple[str, ...]]:
    """The cells of every row of every table."""
    return [
        tuple(" ".join(cell.text_content().split()) for cell in row) for row in lxml.html.fromstring(page).iter("tr")
    ]

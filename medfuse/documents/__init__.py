"""Documents of a run: model card, TRIPOD+AI table and checks of the data card, as Markdown, HTML and JSON.

Every entry is filled from the run, or says that it is for the author; none is silently blank.
"""

from medfuse.documents.facts import RunFacts, read_facts
from medfuse.documents.sheet import Entry, Sheet
from medfuse.documents.writing import DOCUMENTS, sheets, write_documents

__all__ = ["DOCUMENTS", "Entry", "RunFacts", "Sheet", "read_facts", "sheets", "write_documents"]

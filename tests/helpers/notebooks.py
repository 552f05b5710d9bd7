"""What an executed notebook printed."""

import nbformat


def outputs(path):
    book = nbformat.read(path, as_version=4)
    return "".join(out.get("text", "") for cell in book.cells if cell.cell_type == "code" for out in cell.outputs)

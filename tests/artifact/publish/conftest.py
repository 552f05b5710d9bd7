"""A notebook of a parameters cell and the given cells, made for a test."""

import nbformat
import pytest

PARAMETERS = """\
budget = 0.3  # float: share of prompt tokens the constrained endpoint may prefill
draws = 10  # int: requests
quick = False  # bool: the small size
out = "figures"  # str: folder
lengths = [1, 2]  # list: prompt lengths
plain = 4"""


@pytest.fixture
def notebook(tmp_path):
    def make(*cells, name="try", declared=PARAMETERS):
        first = nbformat.v4.new_code_cell(declared, metadata={"tags": ["parameters"]})
        rest = [nbformat.v4.new_code_cell(cell) for cell in cells]
        # a kernel of another name: the runner takes this environment's all the same
        metadata = {"kernelspec": {"name": "nobody", "display_name": "nobody", "language": "python"}}
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[first, *rest], metadata=metadata), path)
        return path

    return make

"""Save the test's figure into the folder that is given."""

import sys

from tests.helpers.figures import save

save(sys.argv[1])

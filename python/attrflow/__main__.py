"""`python -m attrflow …` is `attrflow …`."""

import os
import sys

from ._errors import AttrflowError
from ._program import find_program

if __name__ == "__main__":
    try:
        program = find_program()
    except AttrflowError as error:
        sys.exit(f"error: {error}")
    os.execv(program, [str(program), *sys.argv[1:]])

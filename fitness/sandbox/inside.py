"""What runs inside the sandbox: it bounds itself, runs the program it reads, and says how that ended.

Started by `bubblewrap.run_program` as a script, with nothing but Python's standard library. One JSON object comes in by
standard input: `token`, `source`, `call` (a name in the source, or null), `arguments`, `limits`, `longest`. If the
source has run to its end, and the call has returned, the token and a JSON object go out by standard output: `value`, or
`error`.
"""

import json
import os
import resource
import sys
from collections.abc import Callable

LONGEST_ERROR = 300


def main() -> None:
    """Run the program; the process ends here."""
    answer, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    asked = json.loads(sys.stdin.buffer.read())
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.path[:] = [place for place in sys.path if place != os.path.dirname(__file__)]
    for name, limit in asked["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    token = asked["token"].encode()
    names: dict[str, Callable[..., object]] = {}
    try:
        exec(compile(asked["source"], "<program>", "exec"), names)
        value = names[asked["call"]](*asked["arguments"][0], **asked["arguments"][1]) if asked["call"] else None
        said = json.dumps({"value": value})
    except BaseException as error:  # SystemExit, too: the tests after it did not run
        said = json.dumps({"error": f"{type(error).__name__}: {error}"[:LONGEST_ERROR]})
    if len(said) > asked["longest"]:  # a longer one would wait for a reader
        said = json.dumps({"error": f"its result is longer than {asked['longest']:,} characters"})
    os.write(answer, token + said.encode())
    os._exit(0)


if __name__ == "__main__":
    main()

"""Becomes the benchmark's upstream; found first on PYTHONPATH, the router starts it as a model server."""

import json
import os
import sys

command = json.loads(os.environ["BENCH_UPSTREAM"])
os.execvp(command[0], [*command, *sys.argv[1:]])

"""Runs Python programs, each in a fork of this process: fork_server.py MODULE...

The modules are imported once. In a program that ends at once, that takes longer than all else.

Each line of the standard input is a program, as JSON: its arguments, of which the first one is its
path, its environment, its folder, and files for its output. A line with its exit status answers it.
"""

import gc
import importlib
import json
import os
import runpy
import sys
import traceback

# What is kept for all programs is no garbage, and they end soon.
gc.disable()
for module in sys.argv[1:]:
    importlib.import_module(module)


def redirect(number, path, flags):
    file = os.open(path, flags, 0o600)
    os.dup2(file, number)
    os.close(file)


def run(program):
    redirect(0, os.devnull, os.O_RDONLY)
    output = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    redirect(1, program["stdout"], output)
    redirect(2, program["stderr"], output)
    # Not cleared first: imports have set some of it.
    os.environ.update(program["environment"])
    os.chdir(program["folder"])
    sys.argv = program["arguments"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        status = run(json.loads(line))
        sys.stdout.flush()
        # Leaves it to the kernel to free what was imported.
        os._exit(status)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)

"""The command line, which `starter.py` runs: arguments, output, exit codes, the embedded server and its worker.

It starts and reads generations through `longtake.client`. Rules of the domain belong in `longtake`, what a generation
does in `workflows`. Only `cli.demo` may use the simulator.
"""

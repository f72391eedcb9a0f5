"""The command line: `python starter.py --help`."""

import os

if __name__ == "__main__":
    try:
        from longtake.private_files import keep_files_private

        keep_files_private()
        from cli.app import main

        main()
    except KeyboardInterrupt:  # while Python was still importing
        os._exit(130)

"""Run a bench: `python -m bench.run NAME [--quick] [--json] [--strict]` (or `./dev bench NAME`)."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.common import BenchResult

from tegu.errors import TeguError

__all__ = ["main", "names"]


def names() -> list[str]:
    """Return the benches there are: the folders beside this file that hold a bench.py."""
    return sorted(p.parent.name for p in Path(__file__).parent.glob("*/bench.py"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one bench and print its table; 0 when it ran, 1 when it failed or, strict, missed."""
    parser = argparse.ArgumentParser(
        prog="./dev bench",
        description="Measure Tegu side by side with its peers.",
        epilog="Example: ./dev bench build --quick",
    )
    parser.add_argument("name", choices=names(), help="which question to ask")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a bar is missed")
    args = parser.parse_args(argv)
    # Progress for someone who watches; a pipe gets the result only.
    level = logging.INFO if sys.stderr.isatty() else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    bench = importlib.import_module(f"bench.{args.name}.bench")
    try:
        result: BenchResult = bench.run(args.quick)
    except TeguError as e:
        print(f"bench {args.name}: {e.message}", file=sys.stderr)
        if e.hint:
            print(f"      {e.hint}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print(f"bench {args.name}: interrupted", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        print(result.to_text(), end="")
    return 1 if args.strict and not result.holds else 0


if __name__ == "__main__":
    sys.exit(main())

"""How fast Patina trains, beside the plain peft + diffusers loop: python tools/bench.py [--case NAME ...]"""

import argparse
from dataclasses import asdict
from pathlib import Path

from patina.bench.cases import CASES, chosen, tiny
from patina.errors import run_command


def main(argv: list[str] | None = None) -> int:
    """Print a row as soon as it is measured, then the table in Markdown; exit code 1 where a job failed."""
    args = parse(argv)
    if args.list:
        print("\n".join(f"{case.name:22}{case.title}" for case in CASES))
        return 0
    # both are slow to import: not before the command line has been understood
    from patina.bench import report
    from patina.bench.measure import SIDES, measure, prepare
    from patina.bench.places import write_json

    cases = [tiny(case) if args.tiny else case for case in chosen(args.case)]
    facts = prepare(cases, args.work.resolve(), args.device)
    rates = ", ".join(f"{rate / 1e12:.4g} TFLOP/s on the {kind}" for kind, rate in facts.rate.items())
    print(f"{facts.where}; products of large matrices: {rates or 'not needed'}", flush=True)
    print(", ".join(f"{name} {number}" for name, number in facts.versions.items()) + "\n", flush=True)
    print(report.line(report.HEAD), flush=True)
    rows = []
    for case in cases:
        if case.name not in facts.cases:
            print(report.line((case.title, "left out: it needs a GPU")))
            continue
        sides = [side for side in SIDES if args.only in (None, side.lower())]
        for row in measure(case, facts, args.work.resolve(), sides, args.set):
            print(report.line(report.cells(row, whole=case.whole)), flush=True)
            rows.append(row)
    whole = [case.name for case in cases if case.whole]
    print("\n" + "\n".join(report.markdown(rows, whole)))
    if args.output:
        write_json(args.output, {**asdict(facts), "set": args.set, "rows": [asdict(row) for row in rows]})
    return 1 if any(row.error for row in rows) else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse explains itself and exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Time Patina and the plain loop on the same work, each in a process.")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--list", action="store_true", help="say which cases there are")
    parser.add_argument("--only", choices=("patina", "plain"), help="one side alone")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a config key, for both sides")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="cpu leaves out GPU cases")
    parser.add_argument("--tiny", action="store_true", help="narrow bases on the CPU, for trying out")
    parser.add_argument("--work", type=Path, default=Path("output/bench"), metavar="DIR", help="default: output/bench")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="the figures as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)

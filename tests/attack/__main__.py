"""Run attacks and print their table; exit status 1 if any bar is missed."""
import argparse
import importlib
import pkgutil
import sys
from types import ModuleType

import attack
from attack import driver


def attacks() -> dict[str, ModuleType]:
    """The modules of this package that have cases."""
    found = {m.name: importlib.import_module(f"attack.{m.name}") for m in pkgutil.iter_modules(attack.__path__)
             if not m.name.startswith("_")}
    return {name: module for name, module in found.items() if "cases" in vars(module)}


def main() -> int:
    known = attacks()
    parser = argparse.ArgumentParser(prog="python -m attack", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="ATTACK", help=f"all by default: {', '.join(known)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="cases of each attack; its full count by default")
    parser.add_argument("--only", type=int, help="run this one case in the present process, with its traceback")
    said = parser.parse_args()
    if unknown := set(said.names) - set(known):
        parser.error(f"unknown attack {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    tallies = []
    for name in said.names or known:
        module = known[name]
        cases = list(module.cases(said.seed, said.count or module.FULL))
        if said.only is not None:
            print(cases[said.only].name, "\n", cases[said.only].run())
            return 0
        tallies.append(driver.run_cases(name, cases, said.seed, vars(module).get("LIMIT", driver.LIMIT), progress))
        driver.report(tallies[-1])
        print(driver.table(tallies[-1:]), flush=True)
    print(driver.table(tallies))
    return int(any(tally.faults for tally in tallies))


def progress(tally: driver.Tally) -> None:
    """A word about each fault, and now and then."""
    told = vars(tally).setdefault("told", 0)
    for found in tally.faults[told:]:
        print(f"{found.kind}: {found.name}: {found.said[:700]}", file=sys.stderr, flush=True)
    tally.told = len(tally.faults)
    if (count := sum(tally.counts.values())) % 500 == 0:
        print(f"{tally.attack}: {count} cases, {len(tally.faults)} faults", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Jobs that are killed at a file operation, and asked for again: see tests/kills.py."""
import kills

from attack.driver import Altered, Case

FULL, LIMIT = kills.FULL, 240.0


def judged(kill) -> str:
    """The outcome of a kill in the driver's words."""
    try:
        return kill()
    except kills.Altered as error:
        raise Altered(str(error)) from error


def cases(seed: int, count: int) -> list[Case]:
    """Kills in turn through all jobs."""
    return [Case(name, lambda kill=kill: judged(kill)) for name, kill in kills.cases(seed, count)]

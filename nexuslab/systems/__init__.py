"""The research systems: those of this package, and behind them those in the folder `systems/` of the project."""
from nexuslab.core import project_root

__path__.append(str(project_root() / "systems"))

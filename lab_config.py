"""JupyterLab's configuration in .venv, put there by `make install`: for a stranger's notebook that is only opened.

Without trust JupyterLab leaves out scripts of cells and outputs. But saved widgets are set up again all the same, and
one of anywidget brings its own script; and pictures of other servers are asked for, which tells them who looks.
"""
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


class CarefulManager(AsyncLargeFileManager):
    """The usual manager of files, which hands out the saved widgets of trusted notebooks only."""

    def mark_trusted_cells(self, nb, path=""):
        super().mark_trusted_cells(nb, path)
        if not self.notary.check_signature(nb):
            nb["metadata"].pop("widgets", None)


c = get_config()  # noqa: F821  given by traitlets
c.ServerApp.contents_manager_class = CarefulManager
c.ServerApp.tornado_settings = {"headers": {"Content-Security-Policy": POLICY}}

"""What makes `threadpoolctl`, where it is installed, see and limit pumice's threads.

Registered when pumice is imported, so that ``threadpool_limits`` finds it whichever of the two was imported first.
"""

from __future__ import annotations

from pumice._core import native


def register() -> bool:
    """Make pumice known to threadpoolctl; False where that is not installed."""
    try:
        import threadpoolctl
    except ImportError:
        return False

    class PumiceController(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = "pumice"
        internal_api = "pumice"
        filename_prefixes = ("native.",)
        check_symbols = ("pumice_get_num_threads", "pumice_set_num_threads")

        def get_num_threads(self) -> int:
            return native.get_num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            native.set_num_threads(num_threads)

        def get_version(self) -> str:
            from pumice import __version__

            return __version__

    threadpoolctl.register(PumiceController)
    return True

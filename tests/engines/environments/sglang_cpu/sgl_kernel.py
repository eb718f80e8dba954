"""A stand-in for SGLang's compiled kernels, for the tests only.

SGLang's modules import names from `sgl_kernel` even where they never call them, and no package
index carries its CPU build. With `--attention-backend torch_native` a Llama calls none of them, so
here any name can be imported and nothing can be called. A server for real use needs the real one.
"""

from typing import NoReturn


class _Missing:
    """A kernel that is not there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_args: object, **_options: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{self._name} is a stand-in of the tests")


def __getattr__(name: str) -> _Missing:
    if name.startswith("__"):  # asked by the import machinery; this is no package
        raise AttributeError(name)
    return _Missing(name)

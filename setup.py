"""Puts the pretrained networks into the wheel; everything else stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MODELS = Path(__file__).parent / "results/laptop/models"


class WithWeights(build_py):
    """Copies the weights to where `tevq.pretrained` looks in an installed package."""

    def run(self):
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib) / "tevq/weights"
            self.mkpath(str(folder))
            for file in sorted(MODELS.glob("*.safetensors")):
                self.copy_file(str(file), str(folder / file.name))


setup(cmdclass={"build_py": WithWeights})

"""What pyproject.toml cannot say: jobs/ travels inside the package, so that an installed one has them."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithJobs(build_py):
    """Copies jobs/ to moe_dist/jobs of what is built. An editable installation has the checkout's."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if not self.editable_mode:
            shutil.copytree(
                Path(__file__).parent / "jobs", Path(self.build_lib, "moe_dist", "jobs"), dirs_exist_ok=True
            )


setup(cmdclass={"build_py": BuildWithJobs})

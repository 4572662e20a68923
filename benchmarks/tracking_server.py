"""The default pipeline of a fresh clone against an MLflow server with login, whose database is PostgreSQL.

Usage: ``python benchmarks/tracking_server.py``, after ``make setup``; nine minutes on 2 cores. Needs initdb and
postgres (Debian's package postgresql). Clones the commit that is checked out, runs ``dvc repro`` there, and tells what
the server then knows. Prints Markdown.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import mlflow
import servers


def main() -> None:
    """Runs the pipeline and prints a row for each registered model."""
    here = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with (
        tempfile.TemporaryDirectory(prefix="team") as folder,
        servers.postgresql() as database,
        servers.mlflow_with_login(database, Path(folder)) as login,
    ):
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        started = time.monotonic()
        subprocess.run(["dvc", "repro", "--quiet"], cwd=clone, env=here | login, check=True)
        seconds = time.monotonic() - started
        again = subprocess.run(
            ["dvc", "status"], cwd=clone, env=here | login, check=True, capture_output=True, text=True
        )
        os.environ |= login
        client = mlflow.MlflowClient()
        print(f"dvc repro: {seconds:.0f} s; dvc status: {again.stdout.strip()}")
        print(f"in the checkout: {[path.name for path in clone.glob('ml*')] or 'nothing of MLflow'}\n")
        print("| data set | runs, all finished | champion | decision |\n|---|---|---|---|")
        for registered in client.search_registered_models():
            experiment = client.get_experiment_by_name(registered.name)
            runs = client.search_runs([experiment.experiment_id])
            finished = all(run.info.status == "FINISHED" for run in runs)
            champion = client.get_model_version_by_alias(registered.name, "champion")
            decision = champion.tags["decision"].strip('"')
            print(f"| {registered.name} | {len(runs)}, {finished} | {champion.tags['model']} | {decision} |")


if __name__ == "__main__":
    main()

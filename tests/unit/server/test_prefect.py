import json
import os
import subprocess
import sys
from pathlib import Path

from mlops.server.prefect import prefect_environment
from mlops.settings import PrefectServerSettings

READ_SETTINGS = """
import json
from prefect.settings import get_current_settings
from sqlalchemy import make_url
server = get_current_settings().server
print(json.dumps({
    "auth": server.api.auth_string.get_secret_value(),
    "analytics": server.analytics_enabled,
    "ui": server.ui.api_url,
    "promotion": server.ui.show_promotional_content,
    "vacuum": sorted(server.services.db_vacuum.enabled_vacuum_types),
    "retention_days": server.services.db_vacuum.retention_period.days,
    "database": make_url(server.database.connection_url.get_secret_value())._asdict(),
}))
"""


def test_prefect_reads_its_environment_as_we_mean_it(tmp_path: Path) -> None:
    """Prefect itself finds the login, the database and the retention; analytics are off."""
    settings = PrefectServerSettings.model_validate(
        {
            "listen_port": 4200,
            "mlops_runtime_dir": tmp_path,
            "prefect_db_password": "p@ss/%41:w?#",
            "prefect_password": "secret",
            "prefect_retention_days": 30,
        }
    )
    result = subprocess.run(
        [sys.executable, "-c", READ_SETTINGS],
        env={"PATH": os.environ["PATH"], **prefect_environment(settings)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout) == {
        "auth": "admin:secret",
        "analytics": False,
        "ui": "/api",
        "promotion": False,
        "vacuum": ["events", "flow_runs", "orphans"],
        "retention_days": 30,
        "database": {
            "drivername": "postgresql+asyncpg",
            "username": "prefect",
            "password": "p@ss/%41:w?#",
            "host": "127.0.0.1",
            "port": 5432,
            "database": "prefect",
            "query": {},
        },
    }

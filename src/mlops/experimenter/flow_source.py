"""The text of a flow that runs the stages of a project: `prefect_flow.py` and `flow.yaml`."""

import json
import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mlops.experimenter.flow_parameters import FlowParameter
from mlops.experimenter.stage import Stage, shown, split_at_variables, value_at

FLOW_FILE = "prefect_flow.py"

_HEAD = '''\
"""The flow of the project {project}: pull its data, then run the stages that read it.

Made by `mlops project to-flow`; from here on it is yours to change. Which data and which values a
run has is in flow.yaml.
"""

import os
import subprocess
from pathlib import Path
{imports}
from mlops.data import pull
from prefect import flow, get_run_logger, task

FOLDER = Path(__file__).parent


@task(task_run_name="pull {{path}}")
def pull_data(reference: str, path: str) -> None:
    """Bring DVC's data to a path of this folder, from S3 or this host's cache."""
    pull(reference, FOLDER / path)


'''
_SET_PARAMS = '''\
def set_params(values: dict[str, Any]) -> None:
    """Write values into params.yaml, where the stages read them; the others there stay."""
    path = FOLDER / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, value in values.items():
        *sections, key = name.split(".")
        place = params
        for section in sections:
            place = place[section]
        place[key] = value
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


'''
_RUN_STAGE = '''\
@task(task_run_name="{{name}}")
def run_stage(name: str, *commands: str, folder: str = ".") -> None:
    """Run a stage's commands one after the other; what they print goes to the run's log."""
    log = get_run_logger()
    for command in commands:
        with subprocess.Popen(
            command,
            shell=True,
            cwd=FOLDER / folder,
            env={{**os.environ, "PYTHONUNBUFFERED": "1"}},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            for line in process.stdout:
                log.info(line.rstrip())
        if process.returncode:
            code = process.returncode
            raise RuntimeError(f"stage {{name}} ended with exit code {{code}}: {{command}}")


'''


def function_name(project: str) -> str:
    """Return a name for the flow's function, as near to the project's as Python allows."""
    name = re.sub(r"\W+", "_", project.lower(), flags=re.ASCII).strip("_")
    taken = {"flow", "os", "pull", "pull_data", "run_stage", "set_params", "subprocess", "task"}
    if not name.isidentifier() or keyword.iskeyword(name) or name in taken | {"yaml"}:
        name = f"flow_{name}"
    return name


def python_text(
    project: str,
    stages: Sequence[Stage],
    data: Sequence[FlowParameter],
    values: Sequence[FlowParameter],
    constants: Mapping[str, Any],
) -> str:
    """Return `prefect_flow.py`.

    Args:
        project: Name of the project.
        stages: Those that are run, in order.
        data: Parameters that are references of data.
        values: Parameters that are values of params.yaml.
        constants: params.yaml, for what is no parameter.
    """
    parameters = [*data, *values]
    imports = "from typing import Any\n\nimport yaml" if values else ""  # for set_params
    lines = [
        "@flow",
        f"def {function_name(project)}(",
        *(f"    {each.name}: {each.annotation}," for each in parameters),
        ") -> None:",
        f'    """Run the stages {", ".join(stage.name for stage in stages)} of {project}.',
        "",
        "    Args:",
        *(
            f"        {each.name}: The data at `{each.place}`, as `mlops data show` names it."
            for each in data
        ),
        *(f"        {each.name}: `{each.place}` in params.yaml." for each in values),
        '    """',
        *(f"    pull_data({each.name}, {_quoted(each.place)})" for each in data),
    ]
    if values:
        lines += [
            "    set_params(",
            "        {",
            *(f"            {_quoted(each.place)}: {each.name}," for each in values),
            "        }",
            "    )",
        ]
    by_place = {each.place: each for each in values}
    lines += [f"    {_call(stage, by_place, constants)}" for stage in stages]
    text = _HEAD.format(project=project, imports=imports)
    return text + (_SET_PARAMS if values else "") + _RUN_STAGE.format() + "\n".join(lines) + "\n"


def yaml_text(project: str, deployment: str, parameters: Sequence[FlowParameter]) -> str:
    """Return `flow.yaml`.

    Args:
        project: Name of the project.
        deployment: Name of the deployment.
        parameters: All parameters.
    """
    values = {each.name: each.value for each in parameters}
    dumped = yaml.safe_dump({"parameters": values}, sort_keys=False, allow_unicode=True, width=1000)
    return f"""\
# Where the code starts, which workers take its runs, and when it runs.
deployment:
  flow_py_name: {FLOW_FILE}
  flow_name: {function_name(project)}
  deploy_name: {json.dumps(deployment)}
  pool_name: default-agent-pool
  queue_name: default
# Without a schedule it is started by hand. For a run every morning at six:
# scheduler:
#   method: cron
#   timezone: Europe/Paris
#   cron: '0 6 * * *'
# The revision of the data, as `mlops data show` names it, and the values of params.yaml.
{dumped}"""


def _call(
    stage: Stage, parameters: Mapping[str, FlowParameter], constants: Mapping[str, Any]
) -> str:
    folder = "" if stage.wdir == "." else f", folder={_quoted(stage.wdir)}"
    commands = ", ".join(_command(each, parameters, constants) for each in stage.cmd)
    return f"run_stage({_quoted(stage.name)}, {commands}{folder})"


def _command(
    command: str, parameters: Mapping[str, FlowParameter], constants: Mapping[str, Any]
) -> str:
    """Return a command as a literal of Python, with the parameters in the places of `${a.b}`."""
    plain, names = split_at_variables(command)[::2], split_at_variables(command)[1::2]
    if not any(name in parameters for name in names):
        text = plain[0]
        for name, part in zip(names, plain[1:], strict=True):
            text += shown(value_at(constants, name, name)) + part
        return _quoted(text)
    literal = _braced(plain[0])
    for name, part in zip(names, plain[1:], strict=True):
        if name not in parameters:
            literal += _braced(shown(value_at(constants, name, name)))
        elif isinstance(parameters[name].value, bool):
            literal += f"{{str({parameters[name].name}).lower()}}"
        else:
            literal += f"{{{parameters[name].name}}}"
        literal += _braced(part)
    return f'f"{literal}"'


def _braced(text: str) -> str:
    """Return a text as it stands in an f-string."""
    return _quoted(text)[1:-1].replace("{", "{{").replace("}", "}}")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

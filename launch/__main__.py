"""`python -m launch {local,hosts,slurm,kubernetes} CONFIG`: a training config on machines."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import configs
from configs import command
from launch import check, hosts, kubernetes, local, slurm
from launch.hostfile import read_hostfile
from launch.plan import Plan
from launch.run import Run, read_run
from launch.settings import Settings

LAUNCHERS = ("local", "hosts", "slurm", "kubernetes")
DOC = """Put a training config on machines: shows what --submit would write and run.

  python -m launch local      CONFIG                       this machine
  python -m launch hosts      CONFIG hosts.hostfile=FILE   machines over ssh
  python -m launch slurm      CONFIG slurm.num_nodes=4     a batch script
  python -m launch kubernetes CONFIG kubernetes.image=...  a manifest

key=value of the sections below is for the launcher, any other for the training config."""
SECTIONS = ("launch.", *(f"{name}." for name in LAUNCHERS))


def main(argv: Sequence[str]) -> None:
    """Render and show; write and run with `--submit`."""
    arguments = _parse(argv)
    ours = [word for word in arguments.overrides if word.startswith(SECTIONS)]
    others = [word for word in arguments.overrides if word not in ours]
    path = command.find(arguments.settings) if arguments.settings else None
    settings = configs.load(Settings, path, ours)
    in_image = arguments.launcher == "kubernetes"
    run = read_run(
        arguments.config,
        others,
        folder=settings.launch.folder
        or (settings.kubernetes.mount if in_image else str(Path.cwd())),
        python=settings.launch.python or ("python" if in_image else sys.executable),
    )
    plan = _render(arguments.launcher, run, settings)
    sys.stdout.write(plan.show())
    sys.stdout.flush()
    if not arguments.submit:
        sys.stdout.write("\nnothing was written or run; --submit does both\n")
        return
    _check(arguments.launcher, run, settings)
    plan.submit()


def _check(launcher: str, run: Run, settings: Settings) -> None:
    """What can be seen to fail, before anything is written."""
    resolved = check.check_config(run)
    if launcher != "kubernetes":
        check.check_folder(run)
    if launcher == "local" and settings.local.program == "deepspeed":
        check.check_port(settings)
    if launcher == "hosts":
        if settings.hosts.program == "deepspeed":
            check.check_environment(settings, [Path.home(), Path(run.folder)])
        check.check_hosts(run, settings, read_hostfile(settings.hosts.hostfile))
    if launcher == "slurm":
        check.check_time(run, resolved, slurm.seconds(settings.slurm.time))


def _render(launcher: str, run: Run, settings: Settings) -> Plan:
    """What a launcher makes of the run; it looks at nothing but its hostfile."""
    if launcher == "hosts":
        machines = read_hostfile(settings.hosts.hostfile)
        return hosts.render(run, settings.launch, settings.hosts, machines)
    if launcher == "slurm":
        return slurm.render(run, settings.launch, settings.slurm)
    if launcher == "kubernetes":
        return kubernetes.render(run, settings.launch, settings.kubernetes)
    return local.render(run, settings.launch, settings.local)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    wants_help = "-h" in argv or "--help" in argv
    epilog = f"Every key, its type, default and meaning:\n{configs.describe(Settings)}"
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description=DOC,
        epilog=epilog if wants_help else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("launcher", choices=LAUNCHERS)
    parser.add_argument("config", metavar="CONFIG", help="YAML file of training")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--settings", metavar="FILE", help="YAML file with the sections below")
    parser.add_argument("--submit", action="store_true", help="write the files and run the command")
    return parser.parse_intermixed_args(list(argv))


if __name__ == "__main__":
    command.run(lambda: main(sys.argv[1:]))
